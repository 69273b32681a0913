"""The tangent space of rank-r matrices against dense projections and SVDs, in float64."""

import numpy as np
import pytest
import torch

from fedsvd.lowrank import LowRank
from fedsvd.lowrank import tangent as t

D_OUT, D_IN, R = 7, 9, 3


def drawn(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*s, generator=g, dtype=torch.float64) for s in ((R, D_IN), (D_OUT, R))]


def dense(A, B, G):
    """P(G) by projectors from a dense SVD of B A, as its rank allows."""
    U, s, Vh = np.linalg.svd((B @ A).numpy())
    k = int((s > 1e-9 * max(s[0], 1e-300)).sum())
    left, right = U[:, :k] @ U[:, :k].T, Vh[:k].T @ Vh[:k]
    return left @ G + G @ right - left @ G @ right


def gradients(A, B, G):
    return t.coordinates(t.frame(LowRank(A, B)), B.mT @ G, G @ A.mT)


def matrix(A, B, S, T):
    at = t.frame(LowRank(A, B))
    return T @ at.V.mT + at.U @ S


def test_coordinates_are_the_dense_projection_and_keep_its_norm():
    A, B = drawn()
    G = torch.randn(5, D_OUT, D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    S, T = gradients(A, B, G)  # of five examples at once
    for i in range(5):
        expected = dense(A, B, G[i].numpy())
        np.testing.assert_allclose(matrix(A, B, S[i], T[i]).numpy(), expected, atol=1e-12)
        size = float(S[i].square().sum() + T[i].square().sum())
        assert size == pytest.approx(np.linalg.norm(expected) ** 2, rel=1e-12)


def test_whatever_factors_stand_for_the_product():
    A, B = drawn()
    M = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.5, 0.3], [0.1, 0.0, 40.0]], dtype=torch.float64)
    G = torch.randn(D_OUT, D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    other = (torch.linalg.inv(M) @ A, B @ M)
    one, two = (matrix(*pair, *gradients(*pair, G)) for pair in ((A, B), other))
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    # The factors' own gradients are not so: that is what the projection is for.
    assert abs(float((B.mT @ G).norm() / (other[1].mT @ G).norm()) - 1) > 0.5


def test_standard_normal_coordinates_are_isotropic_in_a_space_of_the_right_dimension():
    """The map from (S, T), S made orthogonal to V, to matrices: its singular values are 1 and 0."""
    A, B = drawn()
    at = t.frame(LowRank(A, B))
    columns = []
    for i in range(R * D_IN + D_OUT * R):
        unit = torch.zeros(R * D_IN + D_OUT * R, dtype=torch.float64)
        unit[i] = 1
        S, T = unit[: R * D_IN].view(R, D_IN), unit[R * D_IN :].view(D_OUT, R)
        columns.append((T @ at.V.mT + at.U @ t.across(at, S)).flatten())
    found = torch.stack(columns, dim=1)
    # So the covariance of the noise is the projector on the tangent space.
    G = torch.eye(D_OUT * D_IN, dtype=torch.float64).view(-1, D_OUT, D_IN)
    projector = np.stack([dense(A, B, g.numpy()).ravel() for g in G], axis=1)
    np.testing.assert_allclose((found @ found.mT).numpy(), projector, atol=1e-12)
    assert np.trace(projector) == pytest.approx(R * (D_OUT + D_IN - R))


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_deficient_point_projects_on_what_remains(rank):
    A, B = drawn()
    B = B.clone()
    B[:, rank:] = 0
    G = torch.randn(D_OUT, D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    Qa, Qb = np.linalg.qr(A.numpy().T)[0], np.linalg.qr(B[:, :rank].numpy())[0]
    left, right = Qb @ Qb.T, Qa @ Qa.T
    expected = left @ G.numpy() + G.numpy() @ right - left @ G.numpy() @ right
    S, T = gradients(A, B, G)
    np.testing.assert_allclose(matrix(A, B, S, T).numpy(), expected, atol=1e-12)
    dA, dB = t.lift(LowRank(A, B), t.frame(LowRank(A, B)), S, T)
    np.testing.assert_allclose((dB @ A + B @ dA).numpy(), expected, atol=1e-11)


def test_the_lift_is_the_smallest_of_all():
    A, B = drawn()
    G = torch.randn(D_OUT, D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    S, T = gradients(A, B, G)
    dA, dB = t.lift(LowRank(A, B), t.frame(LowRank(A, B)), S, T)
    # Least squares of the smallest norm, dense: vec(dB A + B dA) = vec P(G).
    eye = np.eye
    system = np.hstack(
        [np.kron(eye(D_OUT), A.numpy().T), np.kron(B.numpy(), eye(D_IN))]  # row by row
    )
    best = np.linalg.lstsq(system, dense(A, B, G.numpy()).ravel(), rcond=None)[0]
    np.testing.assert_allclose(dB.numpy().ravel(), best[: D_OUT * R], atol=1e-10)
    np.testing.assert_allclose(dA.numpy().ravel(), best[D_OUT * R :], atol=1e-10)


def test_the_way_back_of_several_layers_is_that_of_each():
    """Of one shape, of another, and of another rank."""
    pairs = {"a": LowRank(*drawn(0)), "b": LowRank(*drawn(1)), "d": LowRank(*drawn(2))}
    A, B = drawn(3)
    pairs |= {"c": LowRank(A[:2], B[:, :2]), "e": LowRank(A[:, :6], B)}
    moved = {n: t.stepped(p, 0.1 * p.A, 0.2 * p.B) for n, p in pairs.items()}
    new = t.retract(moved, pairs)
    assert list(new) == list(pairs)
    for name, pair in pairs.items():
        alone = t.retract({name: moved[name]}, {name: pair})[name]
        assert new[name].rank == pair.rank
        torch.testing.assert_close(new[name].A, alone.A, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(new[name].B, alone.B, rtol=1e-10, atol=1e-12)


def test_the_way_back_is_the_truncated_svd_balanced_and_near():
    A, B = drawn()
    G = torch.randn(D_OUT, D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pair, (S, T) = LowRank(A, B), gradients(A, B, G)
    at = t.frame(pair)
    step = t.along(pair, at, -0.1 * S, -0.1 * T, keep=0.9)
    new = t.retract({"l": step}, {"l": pair})["l"]
    U, s, Vh = np.linalg.svd(0.9 * (B @ A).numpy() - 0.1 * dense(A, B, G.numpy()))
    np.testing.assert_allclose(new.product().numpy(), (U[:, :R] * s[:R]) @ Vh[:R], atol=1e-12)
    torch.testing.assert_close(new.A @ new.A.mT, new.B.mT @ new.B)
    # Procrustes: M = B^T B_old + A A_old^T is symmetric and positive.
    M = new.B.mT @ B + new.A @ A.mT
    torch.testing.assert_close(M, M.mT)
    assert float(torch.linalg.eigvalsh(M).min()) > 0
    dA, dB = t.lift(pair, at, S, T)
    same = t.stepped(pair, -0.1 * dA, -0.1 * dB, keep=0.9)
    torch.testing.assert_close(same.product(), step.product())
