"""Random clients of a small model with two shapes of layers and a head, to measure rules on."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, final

import torch
from torch import Generator, Tensor

from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.lowrank.ranks import truncate
from fedsvd.records import from_record, to_record, travelling
from fedsvd.strategies.base import NoiseView, PublicView, Strategy, Update

SHAPES = {"first": (12, 20), "second": (12, 20), "third": (16, 10)}  # (d_out, d_in)
RANK = 3
WEIGHTS = (0.1, 0.2, 0.3, 0.4)
ROUND = 60
TOLERANCE = 1e-6  # relative, on float64 states
NOISE = NoiseView(0.1, {layer: (4.0, 4.0) for layer in SHAPES})  # large enough to drown something


def make_state(
    seed: int = 0, dtype: torch.dtype = torch.float64, round: int = ROUND, base: bool = False
) -> AdapterState:
    """Return a state of random factors of rank 3 and a head, in the middle of a run.

    What happens every 2, 3, 4, 5, 6, 10 or 12 rounds happens in round 60. With `base` frozen weights
    have been changed before.
    """
    g = torch.Generator().manual_seed(seed)
    factors = {
        layer: LowRank(_draw((RANK, d_in), g).to(dtype), _draw((d_out, RANK), g).to(dtype))
        for layer, (d_out, d_in) in SHAPES.items()
    }
    extra = {"head.weight": _draw((3, 8), g).to(dtype), "head.bias": _draw((3,), g).to(dtype)}
    shapes = SHAPES if base else {}
    W = {layer: _draw(shape, g).to(dtype) for layer, shape in shapes.items()}
    return AdapterState(factors, extra, round, W)


def make_rule(cls: type[Strategy], options: Mapping[str, Any]) -> Strategy:
    """Return a new rule that has something public to look at, and noise of a known level."""
    rule = cls(**options)
    rule.public, rule.noise = QuadraticView(), NOISE
    return rule


def start_of(
    rule: Strategy, dtype: torch.dtype = torch.float64, round: int = ROUND
) -> AdapterState:
    """Return the state that a round of `rule` begins with, frozen weights changed if it does so."""
    return make_state(dtype=dtype, round=round, base="W" in rule.broadcasts)


def next_round(state: AdapterState) -> AdapterState:
    """Return what the next round begins with: the state through a record, as the server gets it."""
    tensors = from_record(to_record(state.tensors()))
    return AdapterState.from_tensors(tensors, state.round + 1)


def make_updates(
    rule: Strategy,
    state: AdapterState,
    weights: Sequence[float] = WEIGHTS,
    seed: int = 1,
    ranks: Sequence[int] | None = None,
) -> list[Update]:
    """Return updates of clients that each moved what `rule` has them send in the state's round.

    `ranks` are the clients' own; None: the state's.
    """
    g = torch.Generator().manual_seed(seed)
    updates = []
    for k, weight in enumerate(weights):
        start = state if ranks is None else truncate(state, ranks[k])
        moved = {n: t + 0.5 * _draw(t.shape, g).to(t.dtype) for n, t in sent(rule, start).items()}
        updates.append(Update(k, weight, start.update(moved)))
    return updates


def sent(rule: Strategy, state: AdapterState) -> dict[str, Tensor]:
    """Return the tensors that `rule` has clients send in the state's round, with its values."""
    trained = state.select(travelling(rule.trains_in(state.round), rule.keeps))
    return {**trained, **rule.asks(trained)}


def distance(x: AdapterState, y: AdapterState) -> float:
    """Return the largest relative distance of W + B A over the layers, and of the head's tensors."""
    pairs = [(total(x, layer), total(y, layer)) for layer in y.factors]
    pairs += [(x.extra[n].double(), t.double()) for n, t in y.extra.items()]
    return max(float((a - b).norm() / (b.norm() + 1e-30)) for a, b in pairs)


def total(state: AdapterState, layer: str) -> Tensor:
    """Return W + B A of a layer as a dense (d_out, d_in) float64 matrix."""
    pair = state.factors[layer]
    product = pair.B.double() @ pair.A.double()
    return product + state.base[layer].double() if layer in state.base else product


@final
class QuadraticView(PublicView):
    """A public problem with a known answer: half the squared distance to fixed tensors."""

    def gradients(
        self, state: AdapterState, kinds: Collection[str] | None = None
    ) -> tuple[float, dict[str, Tensor]]:
        """Return the loss and x - target for every factor and tensor of the head."""
        g, apart = torch.Generator().manual_seed(7), {}
        for name, x in state.select(kinds or ("A", "B", "extra")).items():
            apart[name] = x - _draw(x.shape, g).to(x)
        return 0.5 * float(sum(x.square().sum() for x in apart.values())), apart

    def weight_gradients(self, state: AdapterState) -> dict[str, Tensor]:
        """Return W + B A less a fixed random matrix, for every layer."""
        g = torch.Generator().manual_seed(10)
        return {n: total(state, n) - _draw(SHAPES[n], g).to(total(state, n)) for n in state.factors}

    def weight(self, layer: str) -> Tensor:
        """Return a fixed random weight of the layer's shape."""
        return _draw(SHAPES[layer], torch.Generator().manual_seed(8))

    def moment(self, layer: str) -> Tensor:
        """Return the second moment of fixed random inputs of the layer."""
        X = _draw((20, SHAPES[layer][1]), torch.Generator().manual_seed(9))
        return X.mT @ X / len(X)


def _draw(shape: Sequence[int], generator: Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
