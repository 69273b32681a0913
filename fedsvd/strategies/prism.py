"""PRISM: private steps in the tangent space of matrices of rank r."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

from fedsvd.client.rule import LocalRule
from fedsvd.errors import wrong
from fedsvd.lowrank import AdapterState, weighted_sum
from fedsvd.lowrank.tangent import retract
from fedsvd.strategies.base import Strategy, Update, weighted_extra
from fedsvd.strategies.checks import check_beta


@final
class Prism(Strategy):
    """Clients project, clip and noise in the tangent space of B A; the server retracts the mean.

    PRISM (Wang, Zhang, ICML 2026, arXiv 2606.00944; algorithm from the released code, the paper in
    secondary sources). Each example's gradient of Z = B A is projected on the tangent space at Z,
    clipped there by its Frobenius norm over all layers and the head, noised isotropically, and the
    step is taken back to rank r by a truncated SVD: see `fedsvd.client.tangent`, which also has the
    sensitivity. `training.optimizer=adamw` is the paper's adaptive direction (lr 2e-4 to 3e-4 there),
    with `beta1`, `beta2` and `floor`; sgd is the projected gradient itself.

    The paper has one data holder. Here the server takes the same way back from the mean of products:
    B A is the best rank-r approximation of sum p_k B_k A_k, balanced. The paper starts from leading
    singular triplets of the weight (`adapter=pissa`); at LoRA's start B = 0 the first step is B's.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")

    def __init__(self, floor: float = 1.0, beta1: float = 0.9, beta2: float = 0.999) -> None:
        if not isinstance(floor, (int, float)) or not 0 <= floor < float("inf"):
            raise wrong("strategy.floor", floor, "a number of at least 0")
        for key, beta in (("beta1", beta1), ("beta2", beta2)):
            check_beta(f"strategy.{key}", beta)
        self.local = LocalRule(steps="tangent", floor=floor, beta1=beta1, beta2=beta2)

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the truncated mean product, balanced and near the old factors, and the mean head."""
        weights = [u.weight for u in updates]
        mean = {
            layer: weighted_sum([u.state.factors[layer] for u in updates], weights)
            for layer in state.factors
        }
        factors = retract(mean, state.factors)
        return replace(weighted_extra(state, updates), factors=factors)
