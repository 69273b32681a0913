"""LoRA-SB: a small matrix R between the singular vectors of the first step, which R starts as."""

from dataclasses import replace
from typing import ClassVar, final

import torch
from torch import nn

from fedsvd.adapters.base import Parametrisation, Site
from fedsvd.adapters.gradient import gradient_triplets
from fedsvd.adapters.lora_xs import SmallCore
from fedsvd.errors import one_of, wrong
from fedsvd.lowrank import LowRank

STEPS = ("gradient", "sign")


@final
class LoraSB(Parametrisation):
    """W + s B R A with fixed B = U_r, A = V_r^T and R = diag(S_r) / s at first; R (r, r) trains.

    LoRA-SB (Ponkshe et al., 2024, arXiv 2411.19557), algorithm 1, the start of Fed-SB (Singhal et
    al., 2025, arXiv 2502.15436): U S V^T is the first step of full fine-tuning, so that the model
    starts where its best approximation of rank r leads. As published the step is AdamW's, -rate
    sign(G) (`step` "sign"); "gradient" is SGD's, -rate G, whose singular vectors are those of the
    gradient itself. The official code sets `rate` to the learning rate over the number of warm-up
    steps, and s = 1.

    The official code takes G from the first training examples, without noise. Here it is the mean
    gradient of public texts with labels: one of clients' examples would be a release that the
    ledger has to pay for, and no round makes it.
    """

    tensors: ClassVar[tuple[str, ...]] = ("R",)
    needs_gradients = True

    def __init__(self, step: str = "gradient", rate: float = 1e-3) -> None:
        if step not in STEPS:
            raise one_of("adapter.step", step, STEPS)
        if not rate >= 0:
            raise wrong("adapter.rate", rate, "at least 0")
        self.step, self.rate = step, rate
        self.preserves = rate == 0

    def adapt(self, base: nn.Module, site: Site) -> SmallCore:
        """Return the layer with its fixed factors and R."""
        W = site.weight
        assert site.gradient is not None
        if self.step == "sign":
            site = replace(site, gradient=site.gradient.sign())
        U, S, Vh = gradient_triplets(site, site.rank)
        R = torch.diag(self.rate / site.scale * S)
        # The step goes down the gradient: the sign is B's, so that R starts positive.
        return SmallCore(base, site, LowRank(Vh.to(W), -U.to(W)), R.to(W))
