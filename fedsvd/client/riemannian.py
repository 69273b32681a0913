"""Steps of a trained Grassmann head: along geodesics, in the place of the optimiser's."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from fedsvd.lowrank.grassmann import geodesic


def riemannian_step(
    subspaces: Sequence[nn.Parameter], lr: float, momentum: float = 0.0
) -> Callable[[], None]:
    """Return what moves bases (K, m, d) along their gradient and takes it from the optimiser.

    Riemannian SGD as in Wang et al. (ICCV 2023, arXiv 2308.01547) and its released code: momentum is
    of the plain gradient; the sum is projected to the tangent space where the basis is now, and the
    basis follows the geodesic for `lr` times its length. It acts on `grad` as it is, so under
    privacy after clipping and noise, and looks at nothing else: post-processing. With AdamW too the
    head is moved by this step at the same rate, without weight decay, as in the released code.
    """
    memory: dict[int, Tensor] = {}

    def step() -> None:
        for i, p in enumerate(subspaces):
            if p.grad is None or not p.requires_grad:
                continue
            move = p.grad.double()
            if momentum:
                move = memory[i] = momentum * memory.get(i, 0.0) + move
            p.data.copy_(geodesic(p.data, -lr * move))
            p.grad = None  # the optimiser leaves out what has none

    return step
