"""However gradients are clipped, one example moves the sum by at most C."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsvd.privacy.clipping import CLIPPING, STABILITY, clipped_sums
from tests.conftest import tiny_batch, tiny_classifier
from tests.privacy.test_dpsgd import one_step

KINDS = sorted(CLIPPING)
SHAPES = [(4, 3), (5,), (2, 6)]
# What a hostile example could bring about: zeros, spikes, overflowing norms, not-a-numbers.
SCALES = [0.0, 1e-30, 1e-6, 1.0, 1e6, 1e30, math.inf, math.nan]


def random_grads(n, seed, scales):
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(n, *shape, generator=generator) for shape in SHAPES]
    for i, scale in enumerate(scales):
        for g in grads:
            g[i] *= scale
    return grads


def distance(one, other):
    return math.sqrt(
        sum(float((a - b).double().pow(2).sum()) for a, b in zip(one, other, strict=True))
    )


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(KINDS), st.integers(0, 10_000), st.floats(1e-3, 1e3),
    st.lists(st.sampled_from(SCALES), min_size=1, max_size=7), st.data(),
)  # fmt: skip
def test_leaving_any_example_out_moves_the_sum_by_at_most_the_clip(kind, seed, clip, scales, data):
    grads = random_grads(len(scales), seed, scales)
    gone = data.draw(st.integers(0, len(scales) - 1))
    kept = [i for i in range(len(scales)) if i != gone]
    whole, norms = clipped_sums(grads, clip, kind)
    part, _ = clipped_sums([g[kept] for g in grads], clip, kind)
    assert all(t.isfinite().all() for t in whole)
    assert len(norms) == len(scales)
    # float32 sums of up to seven terms of size C
    assert distance(whole, part) <= clip * (1 + 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_factors_against_a_loop_over_examples(kind):
    clip, n = 0.7, 6
    grads = [g.double() for g in random_grads(n, 3, [0.01, 0.1, 0.2, 0.5, 1, 9])]
    expected = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]
    for i in range(n):
        norms = [float(g[i].norm()) for g in grads]
        whole = math.sqrt(sum(x * x for x in norms))
        for t, g in enumerate(grads):
            factor = {
                "flat": min(1, clip / whole),
                "per_layer": min(1, clip / math.sqrt(3) / norms[t]),
                "automatic": clip / (whole + STABILITY),
            }[kind]
            expected[t] += factor * g[i]
    sums, norms = clipped_sums(grads, clip, kind)
    for a, b in zip(sums, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(norms[0], torch.stack([g[0].norm() for g in grads]).norm())


@pytest.mark.parametrize("kind", KINDS)
def test_zero_gradients_stay_zero_and_transposed_ones_are_read_right(kind):
    zeros = [torch.zeros(3, *shape) for shape in SHAPES]
    assert all(float(t.abs().max()) == 0 for t in clipped_sums(zeros, 1.0, kind)[0])
    grads = random_grads(4, 0, [1, 2, 3, 4])
    turned = [g.mT.contiguous().mT if g.ndim == 3 else g for g in grads]
    for a, b in zip(
        clipped_sums(grads, 1.0, kind)[0], clipped_sums(turned, 1.0, kind)[0], strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trains", ["B", "AB"])
@pytest.mark.parametrize("micro", [1, 3, 7])
def test_neighbouring_data_sets_in_the_real_step(kind, trains, micro):
    """The head trains too, every gradient is longer than the clip, batches are cut."""
    clip, n = 0.01, 7
    inputs, labels = tiny_batch(n)
    steps = []
    for rows in [list(range(n)), *[[i for i in range(n) if i != gone] for gone in (0, 4)]]:
        model = tiny_classifier(trains, head_trains=True)
        groups = [rows[i : i + micro] for i in range(0, len(rows), micro)]
        moved, report = one_step(model, inputs, labels, groups, clip=clip, clipping=kind)
        steps.append(list(moved.values()))
        assert float(report.norms.min()) > clip  # all are clipped
    for neighbour in steps[1:]:
        gap = distance(steps[0], neighbour)
        assert 0 < gap <= clip * (1 + 1e-9)


def test_gradients_of_rank_one_factors_in_either_layout():
    # A transposed (n, 1, d) is contiguous both ways round.
    for grads in (torch.ones(3, 1, 4), torch.ones(3, 4, 1), torch.ones(3, 4, 1).mT):
        sums, norms = clipped_sums([grads], 1.0)
        torch.testing.assert_close(sums[0], torch.full(grads.shape[1:], 1.5))
        torch.testing.assert_close(norms, torch.full((3,), 2.0))
