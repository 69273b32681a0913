"""The noise against the normal distribution: body, tails, extremes, grid; what a canary leaves."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2, kstest, norm

from fedsvd.privacy import noise
from fedsvd.privacy.dpsgd import poisson_sample
from fedsvd.privacy.noise import LARGEST, noised, normals
from fedsvd.randomness import Purpose, numpy_stream, uniforms, words

SOURCES = [False, True]  # whether the operating system's


def source(secret, *keys):
    return None if secret else numpy_stream(0, Purpose.NOISE, *keys)


EDGES = np.linspace(-5, 5, 401)
BODY = slice(
    40, -40
)  # of the edges: -4 to 4, where every bin is expected to hold 60 draws and more


def counts(draw):
    """How many of 20 x 2^20 draws are below, between and above the edges."""
    total = np.zeros(len(EDGES) + 1, dtype=np.int64)
    for _ in range(20):
        at = ((draw(1 << 20) + 5) / 0.025).floor_().add_(1).clamp_(0, len(EDGES)).long()
        total += np.bincount(at.numpy(), minlength=len(total))
    return total


def chi_square(found):
    """The p-value of the counts of 402 bins, with what is beyond 4 in one bin on each side."""
    edges = EDGES[BODY]
    observed = np.array([found[:41].sum(), *found[41:-41], found[-41:].sum()])
    p = np.array([norm.cdf(-4), *np.diff(norm.cdf(edges)), norm.sf(4)])
    n = observed.sum()
    return chi2.sf(((observed - n * p) ** 2 / (n * p)).sum(), len(observed) - 1)


@pytest.mark.parametrize("secret", SOURCES)
def test_body_and_tails_of_20_million_draws(secret):
    rng = source(secret)
    found = counts(lambda n: normals(n, rng))
    n = int(found.sum())
    assert n > 2e7
    assert chi_square(found) > 1e-6
    for beyond in (3, 4, 5):
        at = (5 - beyond) * 40 + 1
        tail = int(found[:at].sum() + found[-at:].sum())
        low, high = binom.ppf([1e-6, 1 - 1e-6], n, 2 * norm.sf(beyond))
        assert low <= tail <= high, (beyond, tail, n * 2 * norm.sf(beyond))


def test_the_check_above_sees_a_deviation_that_is_wrong_by_three_in_a_thousand():
    rng = source(False)
    assert chi_square(counts(lambda n: normals(n, rng) * 1.003)) < 1e-6


def extremes(patch, pairs):
    drawn = np.array([w for pair in zip(*pairs, strict=True) for w in pair], dtype=np.int64)
    patch.setattr(noise, "words", lambda count, generator: drawn.view(np.uint64)[:count])
    return normals(len(drawn), None)


def test_the_largest_value_that_the_construction_reaches(monkeypatch):
    ends = [0, 1, -1, 2**63 - 1, -(2**63), 2**62, -(2**62), 2**61]
    radius = [w for w in ends for _ in ends]
    z = extremes(monkeypatch, list(zip(radius, ends * len(ends), strict=True)))
    assert bool(z.isfinite().all())
    assert float(z.abs().max()) == pytest.approx(LARGEST, rel=1e-15)
    assert LARGEST > 9.419
    assert 2 * norm.sf(LARGEST) < 5e-21
    # What it replaces: float32 normals end where a uniform number of 24 bits does.
    assert math.sqrt(48 * math.log(2)) < 5.77


def test_draws_are_those_of_exact_arithmetic_to_the_last_bits(monkeypatch):
    """z = sqrt(-2 log u) cos(a) from the words, in 60 digits."""
    small = [int(w) >> s for w, s in zip(words(64, source(False)), range(64), strict=True)]
    radius = np.concatenate([words(400, source(False, 1)), np.array(small, dtype=np.uint64)])
    angle = words(len(radius), source(False, 2))
    radius, angle = radius.view(np.int64).tolist(), angle.view(np.int64).tolist()
    drawn = np.array([*radius, *angle], dtype=np.int64).view(np.uint64)
    monkeypatch.setattr(noise, "words", lambda count, generator: drawn)
    found = normals(len(drawn), None).tolist()
    half = len(radius)
    with mpmath.workdps(60):
        for i, (w, v) in enumerate(zip(radius, angle, strict=True)):
            u = (mpmath.mpf((w % 2**64) >> 1) + 0.5) / 2**63
            r, a = mpmath.sqrt(-2 * mpmath.log(u)), mpmath.pi * v / 2**63
            allowed = float(r) * 2.0**-50 + 2.0**-52 / max(float(r), 2.0**-26)
            assert abs(found[i] - r * mpmath.cos(a)) < allowed
            assert abs(found[half + i] - r * mpmath.sin(a)) < allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sum_and_noise_are_added_and_rounded_once(dtype):
    """Against rational numbers: the nearest multiple of the cell, whatever the size of the sum."""
    scales = torch.tensor([0, 1e-30, 1e-6, 1e-3, 1, 10, 1e3], dtype=torch.float64)
    total = (torch.randn(200, 7, dtype=torch.float64) * scales).to(dtype)
    for std in (0.37, 1.0, 3e-9, 1e12):
        cell = Fraction(2) ** (math.floor(math.log2(std)) - 10)
        assert Fraction(1, 2048) < cell / Fraction(std) <= Fraction(1, 1024)
        z = normals(total.numel(), source(False, 3)).tolist()
        (found,) = noised([total * std if std > 1 else total], std, source(False, 3))
        assert found.dtype == dtype
        given = (total * std if std > 1 else total).double().flatten().tolist()
        for y, s, n in zip(found.double().flatten().tolist(), given, z, strict=True):
            exact = (Fraction(s) + Fraction(std) * Fraction(n)) / cell
            got = Fraction(y) / cell
            allowed = Fraction(1, 2) + Fraction(1, 2**35)
            if abs(exact) < 2**24:
                assert got.denominator == 1
            else:  # float32 is coarser there
                allowed += abs(exact) * Fraction(1, 2**24)
            assert abs(got - exact) <= allowed


def test_releases_are_on_one_grid_whatever_the_sum():
    sums = [
        torch.zeros(50_000),
        torch.full((50_000,), 1e-9),
        torch.rand(50_000) * 1e-7,
        -torch.rand(50_000),
    ]
    for total in sums:
        y = noised([total], 0.5, source(False))[0].double() * 2048
        assert torch.equal(y, y.round())
        assert not bool((torch.signbit(y) & (y == 0)).any())  # -0.0 would be half a cell
        assert 5 < int((y == 0).sum()) < 60  # a cell holds 0.0004 of the draws


def lattice(total, release, std, pairs):
    """How far the noise, if `total` is the sum, is from float32 Box-Muller's lattice: 0 to 1/2.

    Its radii come from k 2^-24. Where u is small the rounding of a release does not hide k. Means
    over the pairs of small u; noise that is on no lattice has 1/4.
    """
    x, y = pairs(((release - total).double() / std).numpy())
    u = np.exp(-(x**2 + y**2) / 2) * 2.0**24
    u = u[u < 2.0**16]
    return float(np.abs(u - np.round(u)).mean())


def torch_pairs(z):  # torch draws float32 normals in blocks of 16
    z = z.reshape(-1, 16)
    return z[:, :8].ravel(), z[:, 8:].ravel()


def our_pairs(z):
    return z[: len(z) // 2], z[len(z) // 2 :]


@pytest.mark.parametrize("secret", SOURCES)
def test_the_lattice_of_radii_does_not_tell_whether_a_canary_was_in(secret):
    """Twenty releases, each with or without a canary of a thousandth of the noise's deviation."""
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    n, std, seen_before, seen = 1 << 17, 0.5, 0, []
    for trial in range(20):
        with_canary = bool(rng.random() < 0.5)
        sums = torch.randn(n, generator=generator) * 0.01
        canary = torch.randn(n, generator=generator) * std / 1000
        given = sums + canary if with_canary else sums

        def guess(release, pairs, sums=sums, canary=canary):
            inside = lattice(sums + canary, release, std, pairs)
            outside = lattice(sums, release, std, pairs)
            return inside < outside, min(inside, outside)

        before = given + torch.empty(n).normal_(0.0, std, generator=generator)
        seen_before += guess(before, torch_pairs)[0] == with_canary
        seen.append(guess(noised([given], std, source(secret, trial))[0], our_pairs))
        seen[-1] = seen[-1][0] == with_canary, seen[-1][1]
    assert seen_before == 20
    right = sum(r for r, _ in seen)
    assert binom.cdf(min(right, 20 - right), 20, 0.5) > 1e-4
    # 256 pairs a mean: 0.25 with a deviation of 0.009; on a lattice near 0.
    assert min(apart for _, apart in seen) > 0.19


@pytest.mark.parametrize("secret", SOURCES)
def test_noise_is_gaussian_with_the_given_deviation(secret):
    drawn = noised([torch.zeros(300, 401)], 2.5, source(secret))[0].flatten().double().numpy()
    assert kstest(drawn / 2.5, "norm").pvalue > 1e-6
    n = len(drawn)
    low, high = chi2.ppf([1e-6, 1 - 1e-6], n)
    assert low < (drawn**2).sum() / 2.5**2 < high
    # The two halves of Box and Muller's pairs are uncorrelated, and so are their sizes.
    half = n // 2
    for f in (np.asarray, np.abs):
        x, y = f(drawn[:half]), f(drawn[half : 2 * half])
        assert abs(np.corrcoef(x, y)[0, 1]) < 5 / half**0.5


def test_a_stream_repeats_and_the_system_does_not():
    total = [torch.zeros(5, 3, dtype=torch.float64)]
    first, again = (noised(total, 1, source(False))[0] for _ in range(2))
    assert torch.equal(first, again)
    assert first.dtype == torch.float64
    assert not torch.equal(noised(total, 1, None)[0], noised(total, 1, None)[0])
    rng = source(False)
    assert not torch.equal(noised(total, 1, rng)[0], noised(total, 1, rng)[0])


def test_noise_does_not_depend_on_threads():
    drawn = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        drawn.append(normals(1_000_003, source(False)))
    assert torch.equal(*drawn)


def test_every_tensor_has_noise_of_its_own_in_its_shape_and_dtype():
    totals = [
        torch.zeros(4, 7).mT, torch.zeros(()), torch.zeros(0, 3), torch.zeros(28),
        torch.zeros(7, 4, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.float64),
    ]  # fmt: skip
    found = noised(totals, 1.0, source(False))
    for total, drawn in zip(totals, found, strict=True):
        assert (drawn.shape, drawn.dtype) == (total.shape, total.dtype)
        assert bool(drawn.all())
    assert not torch.equal(found[0].flatten(), found[3])
    values = torch.cat([f.double().flatten() for f in found])
    assert len(values.unique()) > len(values) - 5  # the same cell twice, or the same in bfloat16


def test_without_noise_the_sums_are_as_they_were():
    total = torch.randn(9)
    assert torch.equal(noised([total], 0.0, None)[0], total)
    assert noised([], 1.0, None) == []


def test_the_systems_uniforms_and_poisson_batches():
    drawn = uniforms(100_000, None)
    assert kstest(drawn, "uniform").pvalue > 1e-6
    assert drawn.min() >= 0
    assert drawn.max() < 1
    sizes = [len(poisson_sample(100, 0.3, None)) for _ in range(2000)]
    assert abs(np.mean(sizes) - 30) < 5 * (21 / 2000) ** 0.5
    assert abs(np.var(sizes) / 21 - 1) < 0.2
