"""What a harmful client does to its labels and to what it sends."""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from fedsvd.settings import AttackSettings

NAME_OF_LABELS = "label_flip"


def poison(
    sent: Mapping[str, Tensor], received: Mapping[str, Tensor], attack: AttackSettings,
    generator: Generator,
) -> dict[str, Tensor]:  # fmt: skip
    """Return what a harmful client sends instead of `sent`, having started from `received`.

    sign_flip: x - scale (y - x); scaled: x + scale (y - x); gaussian: x + N(0, std^2) from the CPU
    `generator`; non_finite: NaN; label_flip and none: y
    itself. Shapes and dtypes are those of `sent`.
    """
    changed = {}
    for name, y in sent.items():
        x = received[name]
        if attack.name in ("scaled", "sign_flip"):
            factor = attack.scale if attack.name == "scaled" else -attack.scale
            y = x + factor * (y - x)
        elif attack.name == "gaussian":
            noise = torch.randn(y.shape, generator=generator, dtype=torch.float64)
            y = x + (attack.std * noise).to(y)
        elif attack.name == "non_finite":
            y = torch.full_like(y, float("nan"))
        changed[name] = y
    return changed
