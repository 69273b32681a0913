"""Canaries: their directions, coins, and what they add after clipping."""

import pytest
import torch

from fedsvd.audit.canaries import Layout, make_canaries
from fedsvd.privacy.clipping import clipped_sums

LAYOUT = Layout(
    ("x.B", "y.B", "head.bias"), (torch.Size((40, 8)), torch.Size((30, 8)), torch.Size((2,)))
)
CPU = torch.device("cpu")


def made(number=20, seed=0):
    return make_canaries(LAYOUT, 3, number, 100, seed, CPU)


def test_directions_are_orthonormal_and_leave_small_tensors_alone():
    found = made()
    torch.testing.assert_close(
        found.directions @ found.directions.T, torch.eye(20), atol=1e-5, rtol=0
    )
    assert int(found.at.max()) < 560
    assert found.tensor.unique().tolist() == [0, 1]
    assert found.rows.tolist() == list(range(100, 120))


def test_there_are_no_more_than_the_layout_has_room_for():
    assert len(made(5000).rows) == 280


def test_coins_are_fair_and_follow_the_seed():
    coins = torch.tensor([make_canaries(LAYOUT, k, 200, 0, 0, CPU).inside.sum() for k in range(50)])
    assert abs(float(coins.float().mean()) - 100) < 5 * (50 / 50) ** 0.5
    assert (made().inside == made().inside).all()
    assert not (made().inside == made(seed=1).inside).all()


@pytest.mark.parametrize("kind", ["flat", "per_layer", "automatic"])
@pytest.mark.parametrize("trains", [("x.B", "y.B", "head.bias"), ("y.B", "head.bias")])
def test_contributions_are_what_the_real_clipping_leaves(kind, trains):
    found, clip = made(6), 0.7
    gradients = found.gradients(torch.arange(6), LAYOUT, clip)
    covers = {
        n: torch.ones(s) for n, s in zip(LAYOUT.names, LAYOUT.shapes, strict=True) if n in trains
    }
    _, mask = LAYOUT.flat(covers)
    expected = found.contributions(kind, clip, mask, mask, len(trains))
    for i in range(6):
        sums, _ = clipped_sums([gradients[n][i : i + 1] for n in trains], clip, kind)
        flat, _ = LAYOUT.flat(dict(zip(trains, sums, strict=True)))
        torch.testing.assert_close(flat[found.at] / clip, expected[i], atol=1e-5, rtol=1e-4)


def test_a_tensor_of_lower_rank_covers_its_corner():
    values, covers = LAYOUT.flat({"x.B": torch.ones(40, 2)})
    assert float(values.sum()) == int(covers.sum()) == 80
    assert covers[:10].tolist() == [True, True, *[False] * 6, True, True]
