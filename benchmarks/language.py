"""python -m benchmarks.language [--rows N] [--tokens T] [--repeats N] [--threads N]: SmolLM2's steps.

Processor seconds of a DP-SGD step, of a step without privacy on the same model, and of a step of
PEFT's LoRA with Transformers' own loss; tokens a second of each; the memory of a step with and
without checkpointing, on tensors that hold no values. Needs `python -m fedsvd.tasks smollm2`.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.common import machine
from fedsvd.client.training import plain_step
from fedsvd.client.worker import Worker, build_worker
from fedsvd.composing import settings_of
from fedsvd.data.tokens import Tokens
from fedsvd.factors import factors_of
from fedsvd.footprint.outline import Moment, sizes
from fedsvd.privacy.dpsgd import dp_step, make_optimizer
from fedsvd.privacy.hooks import Hooks

GIVEN = [
    "task=causal", "data=squad_qa", "model=smollm2", "partition=iid", "data.limit=20",
    "data.limit_evaluation=10", "partition.min_examples=0", "privacy.accountant=rdp",
    "adapter.targets=[q_proj,v_proj]",
]  # fmt: skip


def some(rows: int, tokens: int) -> Tokens:
    """Return random texts, of which every token but the first counts."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1000, 40000, (tokens,), generator=generator) for _ in range(rows)]
    counted = [torch.arange(tokens) > 0 for _ in range(rows)]
    none = torch.zeros(rows, dtype=torch.int64)
    return Tokens({"input_ids": ids}, none, none + tokens, 0, counted=counted)


def of_worker(worker: Worker, hooks: Hooks, rows: int, private: bool) -> Callable[[], object]:
    """Return a step of DP-SGD, or without privacy, with the same model."""
    parameters = list(worker.model.trainable().values())
    sgd = torch.optim.SGD(parameters, lr=0.1)
    group = [list(range(rows))]
    optimizer = make_optimizer(
        sgd, noise_multiplier=1.0, clip_norm=1.0, expected_batch=float(rows),
        generator=np.random.Generator(np.random.Philox(0)), gradients="hooks",
    )  # fmt: skip

    def step() -> None:
        if private:
            hooks.enable_hooks()
            dp_step(optimizer, group, worker.losses)
        else:
            hooks.disable_hooks()
            plain_step(worker.losses, sgd, group, float(rows), 1.0)

    return step


def of_transformers(rows: int, tokens: int, precision: str) -> Callable[[], object]:
    """Return a step as a script on PEFT and Transformers takes it: B alone trains, labels are ids."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    name = settings_of(GIVEN).model.name
    plain = AutoModelForCausalLM.from_pretrained(name, attn_implementation="eager")
    plain.config.use_cache = False
    model = get_peft_model(plain, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    for n, p in model.named_parameters():
        p.requires_grad_("lora_B" in n)
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    ids = torch.stack(some(rows, tokens).columns["input_ids"])

    def step() -> None:
        sgd.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            model(input_ids=ids, labels=ids).loss.backward()
        sgd.step()

    return step


def steps(rows: int, tokens: int, repeats: int) -> None:
    worker = build_worker(settings_of([*GIVEN, "privacy=none"]))
    worker.tokens = some(rows, tokens)
    hooks = Hooks(worker.model)
    variants = {
        "step without privacy": of_worker(worker, hooks, rows, False),
        "DP-SGD step": of_worker(worker, hooks, rows, True),
        "PEFT and Transformers": of_transformers(rows, tokens, worker.precision),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, step in variants.items():
            began = time.process_time()
            step()
            if turn:  # the first one warms up
                seconds[name].append(time.process_time() - began)
    base = statistics.median(seconds["step without privacy"])
    print(f"\nSteps of {rows} x {tokens} tokens in {worker.precision}, medians of {repeats}")
    for name, found in seconds.items():
        each = statistics.median(found)
        print(f"{name:26}{each:>8.2f} s of processor{rows * tokens / each:>9.0f} tokens a second"
              f"{each / base:>8.3f}")  # fmt: skip


def memory() -> None:
    print("\nA step of 2 x 384 tokens beside weights, hooks on")
    for more in ([], ["training.gradient_checkpointing=true"], ["model.attention=sdpa"]):
        given = settings_of([*GIVEN, "training.precision=fp32", *more])
        found = sizes(given, factors_of(given), Moment("a step", 2, 384, "fp32"))
        print(f"{' '.join(more) or 'as it is':40}{found.most / 2**20:>8,.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("rows", 4), ("tokens", 64), ("repeats", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(machine())
    memory()
    steps(given.rows, given.tokens, given.repeats)


if __name__ == "__main__":
    main()
