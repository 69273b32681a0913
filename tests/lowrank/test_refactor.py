import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsvd.lowrank import AdapterState, LowRank, refactorise, refactorise_pairs, relative_distance


def draw(d_out: int, d_in: int, r: int, deficient: int, seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(r, d_in, generator=generator)
    B = torch.randn(d_out, r, generator=generator)
    if deficient:  # rank of B below r
        B = B[:, :1] @ torch.randn(1, r, generator=generator) if deficient == 1 else 0 * B
    return LowRank(A, B)


shapes = {
    "d_out": st.integers(1, 40), "d_in": st.integers(8, 40), "r": st.integers(1, 8),
    "deficient": st.sampled_from([0, 0, 1, 2]), "seed": st.integers(0, 10_000),
}  # fmt: skip


@given(**shapes)
def test_product_is_kept_and_rows_are_orthonormal(d_out, d_in, r, deficient, seed):
    pair = draw(d_out, d_in, r, deficient, seed)
    (new,) = refactorise_pairs({"x": pair}).values()
    assert new.A.shape == pair.A.shape
    assert new.B.shape == pair.B.shape
    assert new.A.dtype == torch.float32
    scale = pair.product().double().norm() + 1e-30
    error = (new.B.double() @ new.A.double() - pair.B.double() @ pair.A.double()).norm()
    assert error <= 1e-6 * scale
    gram = new.A.double() @ new.A.double().mT
    assert torch.allclose(gram, torch.eye(r, dtype=torch.float64), atol=1e-6)


@given(**shapes)
def test_agrees_with_the_svd_of_the_full_product(d_out, d_in, r, deficient, seed):
    pair = draw(d_out, d_in, r, deficient, seed)
    (new,) = refactorise_pairs({"x": pair}).values()
    full = torch.linalg.svd(pair.B.double() @ pair.A.double(), full_matrices=False)
    k = min(d_out, r)
    lengths = new.B.double().norm(dim=0)
    assert torch.allclose(lengths[:k], full.S[:k], atol=1e-5 * float(full.S[0] + 1e-30))
    # Where singular values are apart, the vectors agree up to sign.
    if not deficient and k > 1 and float((full.S[: k - 1] - full.S[1:k]).min()) > 0.1:
        cosine = (new.A[:k].double() * full.Vh[:k]).sum(1).abs()
        assert torch.allclose(cosine, torch.ones(k, dtype=torch.float64), atol=1e-4)


def test_sign_is_fixed_and_the_step_is_idempotent():
    pair = draw(12, 20, 4, 0, 3)
    once = refactorise_pairs({"x": pair})["x"]
    flipped = refactorise_pairs({"x": LowRank(-pair.A, -pair.B)})["x"]
    twice = refactorise_pairs({"x": once})["x"]
    assert torch.allclose(once.A, flipped.A, atol=1e-6)
    assert torch.allclose(once.A, twice.A, atol=1e-5)
    peaks = once.A.gather(1, once.A.abs().argmax(1, keepdim=True))
    assert (peaks > 0).all()


def test_layers_of_many_shapes_keep_their_order_and_batching_changes_nothing():
    factors = {f"l{i}": draw(10 + 2 * (i % 3), 12, 3, 0, i) for i in range(7)}
    together = refactorise(AdapterState(factors)).factors
    assert list(together) == list(factors)
    for name, pair in factors.items():
        alone = refactorise_pairs({name: pair})[name]
        assert torch.equal(alone.A, together[name].A)
        assert float(relative_distance(together[name], pair)) < 1e-6


def test_rank_above_the_layer_is_refused():
    with pytest.raises(ValueError, match="rank 5 exceeds d_in = 4"):
        refactorise_pairs({"x": LowRank(torch.ones(5, 4), torch.ones(6, 5))})


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_stays_on_the_device():
    pair = draw(12, 20, 4, 0, 3)
    moved = refactorise_pairs({"x": LowRank(pair.A.cuda(), pair.B.cuda())})["x"]
    assert moved.A.is_cuda
    assert float(relative_distance(LowRank(moved.A.cpu(), moved.B.cpu()), pair)) < 1e-6
