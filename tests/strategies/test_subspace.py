"""A problem with a known answer: clients fit B A to targets T_k that A's first rows do not span.

Training B alone from A0, the best that is possible is mean(T) projected onto the rows of A0. FedSVD
stops there, since its row space never moves under SGD; FedSVD-Refresh goes below. docs/fedsvd.md has
the numbers.
"""

from pathlib import Path

import pytest
import torch

from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.strategies import FFA, FedSVD, FedSvdAlternate, FedSvdDct, FedSvdRefresh, Update

D_OUT, D_IN, R, STEPS = 6, 12, 3, 20
WEIGHTS = (0.1, 0.2, 0.3, 0.4)


def problem():
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    common = draw(D_OUT, 1) @ draw(1, D_IN)  # rank 1: R directions would hold it
    targets = [common + 0.1 * draw(D_OUT, D_IN) for _ in WEIGHTS]
    A = torch.linalg.qr(draw(D_IN, R))[0].mT
    return targets, AdapterState({"l": LowRank(A, torch.zeros(D_OUT, R, dtype=torch.float64))})


def train(rule, rounds):
    """Local gradient steps on ||W + B A - T_k||^2 / 2 for what trains; yield each round's state."""
    targets, state = problem()
    state = rule.begin(state)
    for number in range(1, rounds + 1):
        state = AdapterState(state.factors, {}, number, state.base)
        pair, sent = state.factors["l"], []
        W = state.base.get("l", torch.zeros(D_OUT, D_IN, dtype=torch.float64))
        for k, target in enumerate(targets):
            A, B = pair.A.clone(), pair.B.clone()
            for _ in range(STEPS):
                if "B" in rule.trains_in(number):
                    B -= 0.3 * (W + B @ A - target) @ A.mT
                else:
                    A -= 0.3 * B.mT @ (W + B @ A - target)
            sent.append(Update(k, WEIGHTS[k], state.update({"l.A": A, "l.B": B})))
        state = rule.aggregate(state, sent)
        yield state


def projector(A):
    Q = torch.linalg.qr(A.mT)[0]
    return Q @ Q.mT


def gap(state):
    """||W + B A - mean(T)||, which is 0 at the best global model."""
    mean = sum(p * t for p, t in zip(WEIGHTS, problem()[0], strict=True))
    W = state.base.get("l", torch.zeros_like(mean))
    return float((W + state.factors["l"].product() - mean).norm())


def floor():
    """What is left of mean(T) outside the rows of A0: the best for a subspace that stays."""
    targets, state = problem()
    mean = sum(p * t for p, t in zip(WEIGHTS, targets, strict=True))
    return float((mean - mean @ projector(state.factors["l"].A)).norm())


@pytest.mark.parametrize("split", ["svd", "balanced"])
def test_the_row_space_of_fedsvd_never_moves(split):
    start = projector(problem()[1].factors["l"].A)
    for state in train(FedSVD(split=split), 30):
        assert float((projector(state.factors["l"].A) - start).norm()) < 1e-9


def test_fedsvd_ends_at_the_floor_of_its_first_subspace():
    *_, last = train(FedSVD(), 30)
    assert gap(last) == pytest.approx(floor(), rel=1e-6)


@pytest.mark.parametrize("tail", ["drop", "fold"])
def test_refresh_moves_the_row_space_and_goes_below_that_floor(tail):
    start = projector(problem()[1].factors["l"].A)
    states = list(train(FedSvdRefresh(keep=1, tail=tail), 60))
    assert float((projector(states[0].factors["l"].A) - start).norm()) > 0.5
    assert gap(states[-1]) < 0.5 * floor()


def test_dct_moves_the_row_space_once_and_then_stays():
    start = projector(problem()[1].factors["l"].A)
    first, *_, last = train(FedSvdDct(), 10)
    assert float((projector(first.factors["l"].A) - start).norm()) > 0.5
    assert torch.allclose(projector(first.factors["l"].A), projector(last.factors["l"].A))


PAGE = Path(__file__).resolve().parents[2] / "docs" / "fedsvd.md"
RULES = {
    "`ffa`": FFA(),
    "`fedsvd`": FedSVD(),
    "`fedsvd split=balanced`": FedSVD(split="balanced"),
    "`fedsvd_refresh`": FedSvdRefresh(),
    "`fedsvd_refresh tail=fold`": FedSvdRefresh(tail="fold"),
    "`fedsvd_alternate`": FedSvdAlternate(),
    "`fedsvd_dct`": FedSvdDct(),
    "`fedsvd_dct tail=fold`": FedSvdDct(tail="fold"),
}


@pytest.mark.parametrize("name", RULES)
def test_the_table_of_the_page_is_what_comes_out(name):
    start, states = projector(problem()[1].factors["l"].A), list(train(RULES[name], 60))
    moved = float((projector(states[-1].factors["l"].A) - start).norm())
    (row,) = (line for line in PAGE.read_text().splitlines() if line.startswith(f"| {name} |"))
    told = [float(cell) for cell in row.split("|")[2:-1]]
    found = [*(gap(states[n - 1]) for n in (1, 5, 30, 60)), moved]
    assert found == pytest.approx(told, abs=6e-3)


def test_what_the_page_says_of_the_answer():
    targets, _ = problem()
    mean = sum(p * t for p, t in zip(WEIGHTS, targets, strict=True))
    best = float(torch.linalg.svdvals(mean)[R:].norm())
    text = " ".join(PAGE.read_text().split())
    assert f"the best within the rows of A0 is {floor():.2f} away" in text
    assert f"the best of rank 3 {best:.2f}" in text
    assert f"B A = 0 {float(mean.norm()):.2f}" in text
