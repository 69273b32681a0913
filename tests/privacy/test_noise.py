import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest

from fedsvd.privacy import noise
from fedsvd.privacy.dpsgd import poisson_sample


@pytest.mark.parametrize("secure", [False, True])
def test_noise_is_gaussian_with_the_given_deviation(secure):
    generator = None if secure else torch.Generator().manual_seed(0)
    drawn = noise.gaussian(torch.zeros(300, 401), 2.5, generator).flatten().double().numpy()
    assert kstest(drawn / 2.5, "norm").pvalue > 1e-6
    n = len(drawn)
    low, high = chi2.ppf([1e-6, 1 - 1e-6], n)
    assert low < (drawn**2).sum() / 2.5**2 < high
    # The two halves of Box and Muller's pairs are uncorrelated.
    half = n // 2
    assert abs(np.corrcoef(drawn[:half], drawn[half : 2 * half])[0, 1]) < 5 / half**0.5


def test_a_generator_repeats_and_the_system_does_not():
    like = torch.zeros(5, 3, dtype=torch.float64)
    first, again = (noise.gaussian(like, 1, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.dtype == torch.float64
    assert not torch.equal(noise.gaussian(like, 1, None), noise.gaussian(like, 1, None))


def test_noise_has_the_shape_of_a_transposed_tensor():
    like = torch.zeros(4, 7).mT
    drawn = noise.gaussian(like, 1.0, torch.Generator().manual_seed(0))
    assert drawn.shape == (7, 4)


def test_the_systems_uniforms_and_poisson_batches():
    drawn = noise.uniforms(100_000, None).numpy()
    assert kstest(drawn, "uniform").pvalue > 1e-6
    assert drawn.min() >= 0
    assert drawn.max() < 1
    sizes = [len(poisson_sample(100, 0.3, None)) for _ in range(2000)]
    assert abs(np.mean(sizes) - 30) < 5 * (21 / 2000) ** 0.5
    assert abs(np.var(sizes) / 21 - 1) < 0.2
