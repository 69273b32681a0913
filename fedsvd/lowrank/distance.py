"""Inner products, norms and singular values of products B A, without forming them."""

import torch
from torch import Tensor

from fedsvd.lowrank.pair import AdapterState, LowRank


def inner(x: LowRank, y: LowRank) -> Tensor:
    """Return <B_x A_x, B_y A_y>_F = tr((B_x^T B_y)(A_y A_x^T)) as a float64 scalar."""
    return ((x.B.double().mT @ y.B.double()) * (x.A.double() @ y.A.double().mT)).sum()


def norm(x: LowRank) -> Tensor:
    """Return ||B A||_F as a float64 scalar."""
    return inner(x, x).clamp_min(0).sqrt()


def relative_distance(x: LowRank, y: LowRank) -> Tensor:
    """Return ||B_x A_x - B_y A_y||_F / ||B_y A_y||_F, from the stacked factors.

    Stacking keeps full precision where the difference of squared norms would cancel.
    """
    difference = LowRank(torch.cat([x.A, y.A]).double(), torch.cat([x.B, -y.B], dim=1).double())
    return singular_values(difference).norm() / norm(y)


def root_of_gram(A: Tensor) -> Tensor:
    """Return C (r, r), float64, with A A^T = C C^T, so that ||B A||_F = ||B C||_F for every B."""
    e, V = torch.linalg.eigh(A.double() @ A.double().mT)
    return V * e.clamp_min(0).sqrt()


def singular_values(x: LowRank) -> Tensor:
    """Return the min(r, d_out, d_in) leading singular values of B A, descending, in float64."""
    Rb = torch.linalg.qr(x.B.double(), mode="r").R
    Ra = torch.linalg.qr(x.A.double().mT, mode="r").R
    return torch.linalg.svdvals(Rb @ Ra.mT)


def spectra(state: AdapterState) -> dict[str, list[float]]:
    """Return each layer's singular values of B A, or of W + B A where there is a W, descending."""
    found = {}
    for layer, pair in state.factors.items():
        if layer in state.base:
            dense = state.base[layer].double() + pair.B.double() @ pair.A.double()
            found[layer] = torch.linalg.svdvals(dense).tolist()
        else:
            found[layer] = singular_values(pair).tolist()
    return found
