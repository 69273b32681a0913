"""M-FAC at the server: a step along the inverse empirical Fisher matrix of the last updates."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.pair import MEMORY


def newest_direction(rows: Sequence[Tensor], damping: float) -> Tensor:
    """Return the weights c (m,), float64, with F^-1 g_m = sum_i c_i g_i, F = damping I + G^T G / m.

    The g_i (d,) are the m rows of G, of which each tensor of `rows`, (m, d_1), (m, d_2), ..., holds
    some columns; g_m is the last one. Of the d x d matrix F nothing is formed: Woodbury's identity in
    the form F^-1 G^T = G^T (damping I + G G^T / m)^-1 leaves an m x m system, and as g_m is itself a
    row no digits cancel.
    """
    gram = torch.stack([(G @ G.mT) for G in (g.double() for g in rows)]).sum(0)
    values, vectors = torch.linalg.eigh(gram / len(gram))
    # A Gram matrix has no eigenvalue below 0 but by rounding.
    return (vectors / (values.clamp_min(0) + damping)) @ vectors[-1]


def mfac_step(
    old: AdapterState, mean: AdapterState, lr: float, momentum: float, window: int, damping: float
) -> AdapterState:
    """Return `mean` with every tensor that it does not share with `old` replaced by the step.

    Adapted from M-FAC (Frantar, Kurtic, Alistarh, NeurIPS 2021, arXiv 2107.03356): instead of the
    gradient of a batch g is the pseudo-gradient mean - x of a round, all tensors as one vector, so
    the step is added. As in the official optim.py g enters the window before the product is taken, F
    divides by `window` from the first round on, and v = momentum v + (1 - momentum) F^-1 g,
    x += lr v. The product is the paper's; its recursion over the window is not needed for it.

    Where a round trains some tensors only, F is the block of those, with 0 for rounds in which they
    did not move. The window is memory of the state: `window` times what trains, as "g.<name>"
    (window, *shape), oldest first, in the tensor's dtype; with momentum also v, as "m.<name>".
    """
    before, windows, moved = old.tensors(), {}, []
    for name, value in mean.select(("A", "B", "extra")).items():
        x, past = before[name], old.memory.get(f"g.{name}")
        if value is not x:
            moved.append(name)
        elif past is None:
            continue
        past = x.new_zeros(window, *x.shape) if past is None else past
        delta = (value.double() - x.double()).to(x.dtype)
        windows[name] = torch.cat([past[1:], delta[None]])
    new = {f"{MEMORY}g.{name}": rows for name, rows in windows.items()}
    if moved:
        c = newest_direction([windows[name].flatten(1) for name in moved], damping)
    for name in moved:
        x = before[name]
        v = torch.tensordot(c, windows[name].double(), dims=1)
        if momentum:
            had = old.memory.get(f"m.{name}", torch.zeros_like(x))
            v = momentum * had.double() + (1 - momentum) * v
            new[f"{MEMORY}m.{name}"] = v.to(x.dtype)
        new[name] = (x.double() + lr * v).to(x.dtype)
    # What the rule itself remembers is in `mean`, and stays.
    return replace(mean, memory={**old.memory, **mean.memory}).update(new)
