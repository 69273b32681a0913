"""LoRA-GA: A and B span what the mean gradient changes first, side by side."""

from typing import final

from fedsvd.adapters.base import Initialiser, Site
from fedsvd.adapters.gradient import gradient_triplets
from fedsvd.errors import one_of, wrong
from fedsvd.lowrank import LowRank

FORMS = ("published", "peft")


@final
class LoraGA(Initialiser):
    """A = c V_1..r^T and B = c U_r+1..2r of the mean gradient; the frozen weight keeps W - s B A.

    LoRA-GA (Wang et al., NeurIPS 2024, arXiv 2407.05000), theorem 3.1 and algorithm 1, with
    c = d_out^1/4 / sqrt gamma, and the gradient of public texts with labels in place of training's.
    Published with s = alpha / sqrt r, which is adapter.rslora=true; s is the run's. `form` "peft" is
    what PEFT's `lora_ga` computes: A = V_1..r^T and B = c U_r+1..2r diag(S_r+1..2r), which follows
    the gradient's size.
    """

    absorbs = True
    needs_gradients = True

    def __init__(self, gamma: float = 16.0, form: str = "published") -> None:
        if not gamma > 0:
            raise wrong("adapter.gamma", gamma, "above 0")
        if form not in FORMS:
            raise one_of("adapter.form", form, FORMS)
        self.gamma, self.form = gamma, form

    def factors(self, site: Site) -> LowRank:
        """Return the first r right and the next r left singular vectors, scaled."""
        r = site.rank
        U, S, Vh = gradient_triplets(site, 2 * r)
        c = (site.weight.shape[0] / self.gamma**2) ** 0.25
        if self.form == "peft":
            return LowRank(Vh[:r], c * U[:, r:] * S[r:])
        return LowRank(c * Vh[:r], c * U[:, r:])
