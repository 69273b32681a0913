"""Averages of states against dense float64 matrices."""

import numpy as np
import pytest
import torch

from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.lowrank.blend import ROOM, blend, like, started

SHAPES = {"one": (11, 14, 2), "two": (11, 14, 2), "flat": (6, 30, 3)}  # (d_out, d_in, r)


def state(rng, number, shared=None, dtype=torch.float32, base=()):
    factors = {}
    for name, (d_out, d_in, r) in SHAPES.items():
        A = rng.normal(size=(r, d_in)) if shared is None else shared[name]
        B = rng.normal(size=(d_out, r))
        factors[name] = LowRank(torch.tensor(A, dtype=dtype), torch.tensor(B, dtype=dtype))
    W = {n: torch.tensor(rng.normal(size=SHAPES[n][:2]), dtype=dtype) for n in base}
    extra = {"head.bias": torch.tensor(rng.normal(size=3), dtype=dtype)}
    return AdapterState(factors, extra, number, W, {"m": torch.ones(1)})


def dense(s, n):
    W = s.base[n].double() if n in s.base else 0.0
    return (W + s.factors[n].B.double() @ s.factors[n].A.double()).numpy()


def averaged(states, decay):
    found, weight = started(states[0]), 1.0
    for s in states[1:]:
        weight = decay * weight + 1
        found = blend(found, s, 1 / weight)
    return found


def weights(count, decay):
    w = decay ** np.arange(count - 1, -1, -1.0)
    return w / w.sum()


@pytest.mark.parametrize("decay", [1.0, 0.8, 0.0])
def test_an_average_within_one_row_space_is_exact(decay):
    rng = np.random.default_rng(0)
    shared = {n: rng.normal(size=(r, d_in)) for n, (_, d_in, r) in SHAPES.items()}
    states = [state(rng, k, shared) for k in range(12)]
    new = like(averaged(states, decay), states[-1])
    w = weights(12, decay)
    for n in SHAPES:
        expected = sum(p * dense(s, n) for p, s in zip(w, states, strict=True))
        np.testing.assert_allclose(dense(new, n), expected, atol=2e-6)
        assert new.factors[n].A.dtype == torch.float32
        assert new.factors[n].A.shape == states[0].factors[n].A.shape
    heads = sum(p * s.extra["head.bias"].double().numpy() for p, s in zip(w, states, strict=True))
    np.testing.assert_allclose(new.extra["head.bias"].numpy(), heads, atol=1e-6)
    assert (new.round, set(new.memory), new.base) == (11, {"m"}, {})


def test_other_row_spaces_give_the_best_of_the_rank_while_all_is_kept():
    rng = np.random.default_rng(1)
    states = [state(rng, k, dtype=torch.float64) for k in range(ROOM)]
    new, w = like(averaged(states, 0.7), states[-1]), weights(ROOM, 0.7)
    for n, (_, _, r) in SHAPES.items():
        U, s, Vh = np.linalg.svd(sum(p * dense(x, n) for p, x in zip(w, states, strict=True)))
        np.testing.assert_allclose(dense(new, n), (U[:, :r] * s[:r]) @ Vh[:r], atol=1e-10)


def test_models_that_move_slowly_lose_next_to_nothing_over_many_rounds():
    """As between rounds: each state is near the last one, and its row space turns."""
    rng = np.random.default_rng(2)
    signal = {
        n: rng.normal(size=(o, r)) @ rng.normal(size=(r, i)) for n, (o, i, r) in SHAPES.items()
    }
    states, total = [], {n: np.zeros(s.shape) for n, s in signal.items()}
    for k in range(40):
        factors = {}
        for n, (o, i, r) in SHAPES.items():
            U, s, Vh = np.linalg.svd(signal[n] + 0.3 * rng.normal(size=(o, i)))
            pair = LowRank(torch.tensor(Vh[:r]), torch.tensor(U[:, :r] * s[:r]))
            factors[n], total[n] = pair, total[n] + pair.product().numpy() / 40
        states.append(AdapterState(factors, {}, k))
    new = like(averaged(states, 1.0), states[-1])
    for n, (_, _, r) in SHAPES.items():
        best = np.linalg.norm(np.linalg.svd(total[n])[1][r:])
        assert np.linalg.norm(dense(new, n) - total[n]) < 1.02 * best
        # And it is nearer to what they have in common than the last of them.
        assert np.linalg.norm(dense(new, n) - signal[n]) < 0.7 * np.linalg.norm(
            dense(states[-1], n) - signal[n]
        )


def test_dense_updates_take_what_the_rank_has_no_room_for():
    rng = np.random.default_rng(3)
    states = [state(rng, k, dtype=torch.float64, base=("one",) if k > 1 else ()) for k in range(4)]
    new, w = like(averaged(states, 1.0), states[-1]), weights(4, 1.0)
    expected = sum(p * dense(s, "one") for p, s in zip(w, states, strict=True))
    np.testing.assert_allclose(dense(new, "one"), expected, atol=1e-10)
    assert set(new.base) == {"one"}


def test_a_head_alone_is_averaged():
    states = [AdapterState({}, {"head.weight": torch.full((2, 2), float(k))}, k) for k in range(4)]
    new = like(averaged(states, 1.0), states[-1])
    torch.testing.assert_close(new.extra["head.weight"], torch.full((2, 2), 1.5))


def test_a_rank_above_the_width_comes_back_in_its_shape():
    rng = np.random.default_rng(4)
    pair = LowRank(torch.tensor(rng.normal(size=(5, 3))), torch.tensor(rng.normal(size=(4, 5))))
    one = AdapterState({"l": pair})
    new = like(blend(started(one), one, 0.5), one)
    assert new.factors["l"].A.shape == (5, 3)
    np.testing.assert_allclose(
        new.factors["l"].product().numpy(), pair.product().numpy(), atol=1e-12
    )
