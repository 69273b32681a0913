"""What the conformance kit for adapters asks of steps: the first one, and the regulariser's."""

import torch
from torch import Tensor, nn

from fedsvd.adapters.adapted import weight_of
from fedsvd.adapters.base import Adapter, Parametrisation, Spectrum
from fedsvd.client.training import learning_rate, penalty_of
from fedsvd.models.classifier import Classifier
from fedsvd.settings import TrainingSettings
from fedsvd.testing.claims import measured
from fedsvd.testing.small import ODD, ODD_RANK, RANK, far, moved, small_bert, small_classifier

SAME = 1e-5  # relative distance of two moves
FAINT = 3e-5  # a learning rate as for large models
H = 1e-4  # of a difference quotient
STEP = 1e-2  # relative distance of a first step: a start may be a randomised decomposition's


def check_pull(name: str, adapter: Adapter) -> None:
    """Raise AssertionError unless a penalty moves the weights as `decoupled` says."""
    if not isinstance(adapter, Parametrisation) or small_classifier(adapter).penalty is None:
        return
    # Learning rates of the first round, and which of two rounds: lr falls to a half in the second.
    cases = ((0.5, 1), (FAINT, 1), (0.5, 2))
    whole, small, late = (_moves(moved(small_classifier(adapter)), *case) for case in cases)
    size = float(whole.norm())
    free = far(small, whole) < SAME and far(late, whole / 2) < SAME
    bound = far(small, FAINT / 0.5 * whole) < SAME and far(late, whole / 2) < SAME
    assert free or bound, (
        f"{name} has a penalty whose step vanishes with the learning rate in another way than the "
        "step of a loss, or of a rate of its own."
    )
    measured(name, "decoupled", adapter.decoupled, free,
             "moves by its penalty as much at any learning rate")  # fmt: skip
    found = float(_moves(moved(small_classifier(adapter)).float(), FAINT, 1).norm())
    assert not free or found > size / 2, (
        f"{name} has a penalty of its own rate that moves nothing in float32."
    )


def _moves(model: Classifier, lr: float, round: int) -> Tensor:
    """Return how far a step of SGD at `lr` moves all that trains where the data say nothing."""
    training = TrainingSettings(lr, local_steps=1, batch_size=1, schedule="linear")
    parameters = list(model.trainable().values())
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.SGD(parameters, lr=learning_rate(training, round, 2))
    for p in parameters:
        p.grad = torch.zeros_like(p)
    penalty_of(model, parameters, training, round, 2)()
    optimizer.step()
    after = [p.detach() for p in parameters]
    return torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)])


def check_first_step(name: str, adapter: Adapter) -> None:
    """Raise AssertionError unless the first step is the one that a declared `spectrum` gives."""
    held = adapter.spectrum
    if held is None:
        return
    model, plain = small_classifier(adapter).double(), small_bert().double()
    g = torch.Generator().manual_seed(3)
    for layer, module in model.layers.items():
        W = weight_of(plain.get_submodule(layer))
        G = torch.randn(W.shape, generator=g, dtype=W.dtype)
        named = [p for n, p in model.trainable().items() if n.startswith(f"{layer}.")]
        slope = torch.autograd.grad((_weight(module) * G).sum(), named)
        ends = []
        for step in (-H, 2 * H):  # the weight is a polynomial of what trains: no need to be smaller
            with torch.no_grad():
                for p, d in zip(named, slope, strict=True):
                    p.sub_(step * d)
                ends.append(_weight(module))
        rank = ODD_RANK if layer == ODD else RANK
        scale = float(module.scaling["default"])  # type: ignore[index]
        expected = first_step(held, W, G, rank, scale)
        apart = far((ends[1] - ends[0]) / (2 * H), expected)
        assert apart < STEP, (
            f"{name} takes another first step than its `spectrum` says: that of {layer} is "
            f"{apart:.2g} of its length off."
        )


def first_step(held: Spectrum, W: Tensor, G: Tensor, rank: int, scale: float) -> Tensor:
    """Return the move of the weight (d_out, d_in) that `Spectrum` writes down, for a gradient G."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    part = slice(0, rank) if held.part == "leading" else slice(len(S) - rank, len(S))
    U, S, Vh = U[:, part], S[part], Vh[part]
    values = U @ torch.diag((U.mT @ G @ Vh.mT).diagonal()) @ Vh
    if held.trains == "values":
        return -values
    if held.trains == "triplets":
        squares = torch.diag(S.square())
        return -(G @ Vh.mT @ squares @ Vh + values + U @ squares @ U.mT @ G)
    if held.divided:
        S = S / scale
    right, left = (
        Vh.mT @ torch.diag(S ** (2 * held.a)) @ Vh,
        U @ torch.diag(S ** (2 * held.b)) @ U.mT,
    )
    if held.trains == "core":
        return -(scale**2) * left @ G @ right
    return -(scale**2) * (G @ right + left @ G)


def _weight(module: nn.Module) -> Tensor:
    """Return the weight (d_out, d_in) that an adapted layer computes with, differentiable."""
    eye = torch.eye(weight_of(module.get_base_layer()).shape[1], dtype=torch.float64)  # type: ignore[operator]
    found: Tensor = module(eye) - module(torch.zeros_like(eye))
    return found.mT
