"""Heads whose classes are placed by geometry: fixed vectors, and subspaces, fixed or trained."""

import math
from typing import final

import torch
from opacus.grad_sample import register_grad_sampler
from torch import Generator, Tensor, nn

from fedsvd.adapters.linear import FactorLinear, let_gradient_hooks_fire
from fedsvd.errors import InputError, wrong
from fedsvd.lowrank.grassmann import orthonormalised
from fedsvd.lowrank.subspace import orthonormal_columns
from fedsvd.models.heads import set_head
from fedsvd.randomness import Purpose, torch_stream
from fedsvd.threads import one_thread

STEPS, RATE = 2000, 0.3  # of the search for equiangular vectors
LOOSE = 1e-5  # from orthonormal rows, in an entry of their products


def fixed_head(
    kind: str, features: int, classes: int, seed: int, device: torch.device,
    cosine: float = 0.2, dim: int = 8,
) -> nn.Module:  # fmt: skip
    """Return the head "etf", "equiangular", "grassmann" or "grassmann_fixed" as it starts.

    From the stream (seed, "head"). `cosine` bounds the equiangular head's cosines, `dim` is that of
    the Grassmann heads' subspaces. The start never travels, so it is made on one thread: the same
    bits whatever the process has. Raises InputError if the vectors do not fit in `features`
    dimensions.
    """
    generator = torch_stream(seed, Purpose.HEAD)
    with one_thread():
        if kind in ("grassmann", "grassmann_fixed"):
            return GrassmannHead(subspaces(features, classes, dim, generator).float()).to(device)
        if kind == "etf":
            weight = simplex_etf(features, classes, generator)
        else:
            weight = equiangular(features, classes, cosine, generator)
    return set_head(FactorLinear(features, classes, bias=False, device=device), weight)


def simplex_etf(features: int, classes: int, generator: Generator) -> Tensor:
    """Return K unit vectors (K, d) of pairwise cosine -1 / (K - 1): a simplex, rotated at random.

    The columns of sqrt(K / (K - 1)) P (I - 11^T / K), P (d, K) orthonormal (Papyan, Han, Donoho, PNAS
    2020). Float64. Raises InputError if d < K.
    """
    if features < classes:
        raise wrong("model.head", "etf", f"used with at most {features} classes for this model")
    P = orthonormal_columns(features, classes, generator)
    centre = torch.eye(classes, dtype=P.dtype) - 1 / classes
    return (math.sqrt(classes / max(classes - 1, 1)) * P @ centre).mT.contiguous()


def equiangular(features: int, classes: int, cosine: float, generator: Generator) -> Tensor:
    """Return K unit vectors (K, d) with every |cos| between two at most `cosine`, float64.

    Equiangular basis vectors (Shen, Sun, Wei, CVPR 2023, arXiv 2303.11637). Up to d classes they are
    orthonormal. For more, gradient descent on the sum of max(0, |cos| - cosine)^2 from random ones.
    Raises InputError if that ends above the bound: none can be below the Welch bound
    sqrt((K - d) / (d (K - 1))).
    """
    if classes <= features:
        return orthonormal_columns(features, classes, generator).mT.contiguous()
    vectors = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    vectors = nn.functional.normalize(vectors, dim=1)
    target, eye = 0.98 * cosine, torch.eye(classes, dtype=torch.float64)
    for _ in range(STEPS):
        gram = vectors @ vectors.mT - eye
        if float(gram.abs().max()) <= cosine:
            return vectors
        over = (gram.abs() - target).clamp_min(0) * gram.sign()
        vectors = nn.functional.normalize(vectors - RATE * over @ vectors, dim=1)
    bound = math.sqrt((classes - features) / (features * (classes - 1)))
    raise InputError(
        f"model.head_cosine: no {classes} vectors in {features} dimensions with cosines of at most "
        f"{cosine} were found; the least possible is {bound:.3f}, take a larger one"
    )


def subspaces(features: int, classes: int, dim: int, generator: Generator) -> Tensor:
    """Return bases (K, dim, d) of K random subspaces, orthonormal rows, float64.

    They are orthogonal to each other where K dim <= d. Raises InputError if dim > d.
    """
    if dim > features:
        raise wrong("model.head_dim", dim, f"at most {features}, the model's features")
    if classes * dim <= features:
        return orthonormal_columns(features, classes * dim, generator).mT.reshape(
            classes, dim, features
        )
    return torch.stack([orthonormal_columns(features, dim, generator).mT for _ in range(classes)])


@final
class GrassmannHead(nn.Module):
    """A logit is the length of the normalised feature's projection on the class's subspace.

    ||S_i^T x / ||x|| || with a point S_i of the Grassmannian for each class (Wang et al., ICCV 2023,
    arXiv 2308.01547; 25 times that are its logits, and 8 the dimension). subspaces: (K, dim, d),
    orthonormal rows. They train by Riemannian steps (`fedsvd.client.riemannian`), or stay.
    """

    def __init__(self, subspaces: Tensor) -> None:
        super().__init__()
        self.subspaces = nn.Parameter(subspaces.contiguous(), requires_grad=False)
        self.register_forward_pre_hook(_if_it_trains)

    def forward(self, x: Tensor) -> Tensor:
        """Return the lengths (n, K) of the projections of x (n, d)."""
        return projections(x, self.subspaces)

    @torch.no_grad()
    def settle(self) -> None:
        """Make the rows orthonormal again, if a server has not left them so.

        Strategies that do not average (a median, server optimisers of others) treat a basis as
        numbers. What is orthonormal to rounding keeps its bits.
        """
        S = self.subspaces
        eye = torch.eye(S.shape[1], dtype=S.dtype, device=S.device)
        if bool(S.isfinite().all()) and float((S @ S.mT - eye).abs().max()) > LOOSE:
            S.copy_(orthonormalised(S))


def _if_it_trains(head: GrassmannHead, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return let_gradient_hooks_fire(head, inputs) if head.subspaces.requires_grad else inputs


def projections(x: Tensor, subspaces: Tensor) -> Tensor:
    """Return ||S_i^T x / ||x|| || (n, K) for x (n, d) and bases (K, dim, d)."""
    return torch.einsum("kid,nd->nki", subspaces, nn.functional.normalize(x, dim=1)).norm(dim=2)


@register_grad_sampler(GrassmannHead)
def subspaces_grad_sample(
    head: GrassmannHead, activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    """Return the gradient of every example, (n, K, dim, d).

    g_k (S_k x / ||S_k x||) x^T for the normalised feature x and the slope g_k of the k-th length.
    """
    S = head.subspaces
    x = nn.functional.normalize(activations[0].to(S.dtype), dim=1)
    low = torch.einsum("kid,nd->nki", S, x)
    length = low.norm(dim=2, keepdim=True)
    along = torch.where(length > 0, low / length, 0) * backprops.to(S.dtype).unsqueeze(-1)
    return {S: torch.einsum("nki,nd->nkid", along, x)}
