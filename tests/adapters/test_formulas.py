"""Every adapter's formula against an independent computation in float64."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import nn

from fedsvd.adapters import (
    Cayley,
    Dct,
    Effort,
    Eora,
    Hadamard,
    Imbalanced,
    Inputs,
    Kronecker,
    LoraXS,
    Milora,
    Site,
    Sorsa,
    SVFit,
    lora,
)  # fmt: skip
from fedsvd.adapters.adapted import merged_weight
from fedsvd.adapters.build import build_adapter
from fedsvd.adapters.kronecker import QUATERNION
from fedsvd.errors import InputError
from fedsvd.randomness import Purpose, torch_stream
from fedsvd.settings import AdapterSettings

R = 3


def weight(d_out=12, d_in=16, seed=0):
    return torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(seed)).double()


def site(W, alpha=6.0, inputs=None):
    stream = torch_stream(0, Purpose.ADAPTER, "layer")
    return Site("layer", W, R, alpha, stream, inputs=inputs)


def adapt(adapter, W, noise=0.0):
    base = nn.Linear(W.shape[1], W.shape[0], bias=False).double().requires_grad_(False)
    base.weight.data.copy_(W)
    layer = adapter.adapt(base, site(W.clone()))
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in layer.trained().values():
            p.add_(noise * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return layer


def svd(W):
    U, S, Vt = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver="gesvd")
    return U, S, Vt


def close(found, expected, tolerance=1e-9):
    found = found.detach().numpy() if isinstance(found, torch.Tensor) else found
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [(12, 16), (16, 12), (12, 12)])
def test_milora_holds_the_last_triplets(shape):
    W = weight(*shape)
    U, S, Vt = svd(W)
    pair = Milora().factors(site(W))
    close(2.0 * pair.product(), (U[:, -R:] * S[-R:]) @ Vt[-R:])
    close(pair.A.norm(dim=1) ** 2, S[-R:] / 2.0)  # the square root of S / s on either side


def test_svfit_scales_singular_values():
    W = weight()
    layer = adapt(SVFit(energy=None), W, noise=0.5)
    U, S, Vt = svd(W)
    S[:R] = layer.trained()["sigma"].detach().numpy()
    close(merged_weight(layer), (U * S) @ Vt)
    close(layer.change().product(), merged_weight(layer) - W)


def test_svfit_trains_as_many_singular_values_as_hold_the_energy():
    # Squares 64, 32, 3, 0.9, 0.1 of 100: 64, 96, 99, 99.9 and 100 %.
    values = np.sqrt([64, 32, 3, 0.9, 0.1])
    g = np.random.default_rng(0)
    (Q, _), (P, _) = (np.linalg.qr(g.normal(size=(n, 5))) for n in (6, 7))
    W = torch.from_numpy((Q * values) @ P.T)

    def count(energy, rank=None):
        options = {} if energy is None else {"energy": energy}
        settings = AdapterSettings("svfit", rank=rank, targets=("x",), options=options)
        holder = nn.ModuleDict({"x": nn.Linear(7, 6, bias=False).double()}).requires_grad_(False)
        holder["x"].weight.data.copy_(W)
        sigma = lora.attach(holder, settings, 0, ()).initial.extra["x.sigma"]
        close(sigma, values[: len(sigma)])
        return len(sigma)

    assert [count(e) for e in (0.5, 0.95, 0.9899, 0.9901, 0.9991, 1.0)] == [1, 2, 3, 4, 5, 5]
    assert count(None) == 3  # 0.99 as published, within rounding of the third
    assert count(0.9991, rank=2) == 2
    with pytest.raises(InputError, match=r"adapter\.energy: 0\.0 is not allowed"):
        SVFit(0.0)
    for name in ("lora", "sorsa"):
        with pytest.raises(InputError, match=r"adapter\.rank: None is not allowed"):
            build_adapter(AdapterSettings(name, rank=None))


@pytest.mark.parametrize("sizes", [{}, {"a": 0.5, "b": 2.0}])
def test_imbalanced_factors_are_gaussian_of_their_sizes(sizes):
    stream = torch_stream(0, Purpose.ADAPTER, "layer")
    place = Site("layer", weight(200, 300), 60, 6.0, stream)
    pair = Imbalanced(**sizes).factors(place)
    a, b = sizes.get("a", 1.0), sizes.get("b", 1 / 3)
    for factor, size, d in ((pair.A, a, 300), (pair.B, b, 200)):
        z = factor.numpy().ravel() * math.sqrt(d) / size
        assert scipy.stats.kstest(z, "norm").pvalue > 0.01
    assert float(pair.A.norm(dim=1).mean()) == pytest.approx(a, rel=0.02)
    assert float(pair.B.norm(dim=0).mean()) == pytest.approx(b, rel=0.02)
    close(Imbalanced().residual(place, pair), place.weight - 0.1 * pair.B @ pair.A)
    golden = Imbalanced().factors(site(weight()))
    if not sizes:
        close(golden.A[0, :2], [0.29882368110649915, -0.23007526485958682])
        close(golden.B[:2, 0], [-0.07944380024220186, -0.0004673399255113966])
    with pytest.raises(InputError, match=r"adapter\.b: 0 is not allowed"):
        Imbalanced(b=0)


def test_imbalanced_descent_reaches_a_matrix_of_lower_rank_where_a_balanced_one_is_slow():
    """With more columns than the target's rank, by the paper: linear against 1 / T^2 of X X^T."""
    M = torch.zeros(20, 20, dtype=torch.float64)
    M[0, 0], M[1, 1] = 1.0, 0.5
    stream = torch_stream(0, Purpose.ADAPTER, "layer")
    pair = Imbalanced().factors(Site("layer", M, 6, 6.0, stream))
    A, B = pair.A.clone(), pair.B.clone()
    X = B.clone()
    for _ in range(2000):
        E = B @ A - M
        A, B = A - 0.1 * B.mT @ E, B - 0.1 * E @ A.mT
        X = X - 0.2 * (X @ X.mT - M) @ X
    assert float((B @ A - M).norm()) < 1e-9 < float((X @ X.mT - M).norm()) / 1e4


@pytest.mark.parametrize("start", ["svd", "vectors", "orthonormal"])
def test_lora_xs_is_w_plus_s_b_r_a(start):
    W = weight()
    layer = adapt(LoraXS(start), W, noise=0.5)
    core = layer.trained()["R"].detach().numpy()
    U, S, Vt = svd(W)
    if start == "orthonormal":
        A, B = layer.A.numpy(), layer.B.numpy()
        close(A @ A.T, np.eye(R))
        close(B.T @ B, np.eye(R))
    else:
        sign = np.sign(np.sum(layer.A.numpy() * Vt[:R], axis=1))
        A, B = Vt[:R] * sign[:, None], U[:, :R] * sign
        A = S[:R, None] * A if start == "svd" else A  # the singular values are A's
        close(layer.A, A)
        close(layer.B, B)
    close(merged_weight(layer), W.numpy() + 2.0 * B @ core @ A)


def test_the_start_of_lora_xs_has_its_deviation():
    big = LoraXS(std=1e-5).adapt(nn.Linear(300, 300), Site(
        "x", weight(300, 300), 200, 1.0, torch_stream(0, Purpose.ADAPTER, "x")))  # fmt: skip
    assert float(big.trained()["R"].detach().std()) == pytest.approx(1e-5, rel=0.02)


def test_sorsa_and_its_regulariser_against_the_closed_form():
    W = weight()
    layer, other = adapt(Sorsa(), W, noise=0.1), adapt(Sorsa(), weight(seed=1), noise=0.2)
    p = {n: t.detach().numpy() for n, t in layer.trained().items()}
    U, S, Vt = svd(W)
    rest = W.numpy() - (U[:, :R] * S[:R]) @ Vt[:R]
    close(merged_weight(layer), rest + (p["U"] * p["S"]) @ p["Vh"])
    value = Sorsa(gamma=0.7).penalty([layer, other])
    grads = torch.autograd.grad(value, [layer.U.weight, layer.Vh.weight])
    norms = []
    for each in (layer, other):
        X, Y = each.U.weight.detach().numpy(), each.Vh.weight.detach().numpy()
        norms += [np.linalg.norm(X.T @ X - np.eye(R)), np.linalg.norm(Y @ Y.T - np.eye(R))]
    assert float(value.detach()) == pytest.approx(0.7 * np.mean(norms), rel=1e-12)
    # d ||X^T X - I||_F = 2 X (X^T X - I) / ||X^T X - I||_F, a quarter of gamma for each of the four.
    E = p["U"].T @ p["U"] - np.eye(R)
    close(grads[0], 0.7 / 4 * 2 * p["U"] @ E / norms[0])
    E = p["Vh"] @ p["Vh"].T - np.eye(R)
    close(grads[1], 0.7 / 4 * 2 * E @ p["Vh"] / norms[1])
    assert Sorsa(gamma=0).penalty([layer]) is None


@pytest.mark.parametrize("shape", [(12, 16), (16, 12), (12, 12)])
def test_effort_freezes_the_leading_triplets_and_its_losses(shape):
    W = weight(*shape)
    layer = adapt(Effort(), W, noise=0.1)
    p = {n: t.detach().numpy() for n, t in layer.trained().items()}
    U, S, Vt = svd(W)
    lead = (U[:, :-R] * S[:-R]) @ Vt[:-R]
    close(layer.get_base_layer().weight, lead)
    merged = lead + (p["U"] * p["S"]) @ p["Vh"]
    close(merged_weight(layer), merged)
    whole_U, whole_V = np.hstack([U[:, :-R], p["U"]]), np.vstack([Vt[:-R], p["Vh"]])
    n = whole_U.shape[1]
    apart = np.linalg.norm(whole_U.T @ whole_U - np.eye(n)) / 2
    apart += np.linalg.norm(whole_V @ whole_V.T - np.eye(n)) / 2
    energy = abs(np.linalg.norm(merged) ** 2 - np.linalg.norm(W.numpy()) ** 2)
    for a, b in ((1.0, 0.0), (0.0, 1.0), (0.3, 0.2)):
        built = adapt(Effort(a, b), W, noise=0.1)
        assert float(Effort(a, b).penalty([built]).detach()) == pytest.approx(
            a * apart + b * energy
        )


@pytest.mark.parametrize("shape", [(12, 16), (16, 12), (12, 12)])
def test_efforts_losses_on_an_attached_layer(shape):
    """Where the layer's weight is the memory that its start is computed from, in float32."""
    W = weight(*shape).float()
    W[:2] = 0  # two singular values of 0, exactly
    holder = nn.ModuleDict({"x": nn.Linear(shape[1], shape[0], bias=False)}).requires_grad_(False)
    holder["x"].weight.data.copy_(W)
    settings = AdapterSettings("effort", rank=R, targets=("x",))
    attached = lora.attach(holder, settings, 0, (), adapter=Effort(orthogonality=1.0, energy=0.0))
    g = torch.Generator().manual_seed(5)
    layer = attached.layers["x"]
    U, S, Vt = svd(W.double())
    starts = {n: p.detach().double().numpy() for n, p in layer.trained().items()}
    # At the start nothing but rounding is apart, of which the norm's slope would make a step.
    assert float(attached.penalty().detach()) == 0
    assert not any(
        bool(grad.any())
        for grad in torch.autograd.grad(attached.penalty(), [layer.U.weight, layer.Vh.weight])
    )
    close(starts["S"], S[-R:], 1e-5)
    with torch.no_grad():
        for p in layer.trained().values():
            p.add_(0.3 * torch.randn(p.shape, generator=g))
    n, apart = len(S), 0.0
    for key, lead in (("U", U[:, :-R].T), ("Vh", Vt[:-R])):
        now = layer.trained()[key].detach().double().numpy()
        whole = np.vstack([lead, now.T if key == "U" else now])
        apart += np.linalg.norm(whole @ whole.T - np.eye(n)) / 2
    value = attached.penalty()
    assert float(value.detach()) == pytest.approx(apart, rel=1e-4)
    grads = torch.autograd.grad(value, [layer.U.weight, layer.Vh.weight])
    assert all(bool(grad.isfinite().all()) for grad in grads)


def test_eora_beats_plain_svd_on_what_the_layer_sees():
    W = weight(20, 24)
    g = torch.Generator().manual_seed(3)
    X = torch.randn(500, 24, generator=g).double() * torch.linspace(3, 0.05, 24).double()
    inputs = Inputs(X.mT @ X / 500, X.mean(0), 500)
    for adapter in (Eora(), Eora("prune", sparsity=0.5)):
        place = site(W, inputs=inputs)
        left = adapter.residual(place)
        lost = W - left
        pair = adapter.factors(place)
        ours = torch.linalg.norm(X @ (lost - place.scale * pair.product()).mT)
        # The best approximation of X lost^T of rank r, by Eckart and Young, by no formula of it.
        least = torch.linalg.svdvals(X @ lost.mT)[R:].norm()
        assert float(ours) == pytest.approx(float(least), rel=1e-9)
    assert (
        float((Eora().residual(site(W)) - W).abs().max()) <= float(W.abs().max()) / 127 / 2 + 1e-12
    )
    levels = Eora().residual(site(W)) / (W.abs().amax(1, keepdim=True) / 127)
    close(levels, levels.round().numpy())
    pruned = Eora("prune", sparsity=0.25).residual(site(W))
    assert ((pruned == 0).sum(1) == 6).all()
    assert float(W[pruned == 0].abs().mean()) < float(W[pruned != 0].abs().mean()) / 3


def test_dct_and_hadamard_rows():
    A = Dct("low").factors(site(weight())).A
    n = np.arange(16)
    rows = [
        np.cos(math.pi * (2 * n + 1) * j / 32) * math.sqrt((1 if j == 0 else 2) / 16)
        for j in range(R)
    ]
    close(A, np.stack(rows))
    random = Dct("random").factors(site(weight())).A
    basis = scipy.fft.dct(np.eye(16), norm="ortho", axis=0)
    close(np.abs(random.numpy() @ basis.T).max(1), np.ones(R))
    A = Hadamard().factors(site(weight())).A
    close(A.abs(), np.full((R, 16), 0.25))
    close(A @ A.mT, np.eye(R))
    H = scipy.linalg.hadamard(16)
    signs = A * 4 * (A[:1] * 4)  # the columns' common sign cancels: products of rows are rows
    close(np.abs(signs.numpy() @ H.T).max(1), np.full(R, 16.0))
    A = Hadamard().factors(site(weight(12, 13))).A
    close(A @ A.mT, np.eye(R))


@pytest.mark.parametrize(("algebra", "terms"), [("learned", 2), ("learned", 4), ("quaternion", 4)])
def test_kronecker_is_the_sum_of_its_products(algebra, terms):
    W = weight()
    layer = adapt(Kronecker(terms, algebra), W, noise=0.3)
    down, up = layer.down.weight.detach().numpy(), layer.up.weight.detach().numpy()
    C = layer.mix.weight.detach().numpy()
    total = sum(
        np.kron(C[i], up[:, i * R : (i + 1) * R] @ down[i * R : (i + 1) * R]) for i in range(terms)
    )
    close(merged_weight(layer), W.numpy() + 2.0 * total)
    assert sum(p.numel() for p in layer.trained().values()) == R * (12 + 16) + (
        terms**3 if algebra == "learned" else 0
    )


def test_the_quaternion_table_is_hamiltons_product():
    units = [np.array(unit) for unit in QUATERNION]  # left multiplication by 1, i, j, k
    one, i, j, k = units
    for left, right, product in ((i, j, k), (j, k, i), (k, i, j), (i, i, -one), (k, k, -one)):
        np.testing.assert_array_equal(left @ right, product)


def test_terms_must_divide_the_layer():
    with pytest.raises(InputError, match=r"adapter\.terms: 5 does not divide"):
        adapt(Kronecker(5), weight())
    with pytest.raises(InputError, match=r"4 with adapter\.algebra=quaternion"):
        Kronecker(3, "quaternion")


def test_cayley_is_the_dense_transform_and_stays_orthonormal():
    W = weight()
    for noise in (0.1, 3.0):
        layer = adapt(Cayley(), W, noise=noise)
        X, A0 = layer.rows.weight.detach().numpy(), layer.rows.start.numpy()
        K = X.T @ A0 - A0.T @ X
        np.testing.assert_array_equal(K, -K.T)
        eye = np.eye(16)
        A = A0 @ (eye - K / 2) @ np.linalg.inv(eye + K / 2)
        close(A @ A.T, A0 @ A0.T, 1e-9)
        close(merged_weight(layer), W.numpy() + 2.0 * layer.up.weight.detach().numpy() @ A)


def test_rsloras_scale_is_alpha_over_the_root_of_the_rank_everywhere():
    """In PEFT's layers and in ours, with ranks of layers."""
    for name in ("lora", "kronecker"):
        for rslora in (False, True):
            holder = nn.ModuleDict({n: nn.Linear(16, 12, bias=False) for n in ("x", "y")})
            holder.requires_grad_(False)
            settings = AdapterSettings(
                name, rank=9, alpha=6.0, targets=("x", "y"), ranks={"y": 4}, rslora=rslora
            )
            attached = lora.attach(holder, settings, 0, ("A", "B"))
            scales = {n: m.scaling["default"] for n, m in attached.layers.items()}
            expected = {"x": 2.0, "y": 3.0} if rslora else {"x": 6 / 9, "y": 6 / 4}
            assert scales == pytest.approx(expected)
    layer = attached.layers["x"]
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in layer.trained().values():
            p.add_(0.1)
        torch.testing.assert_close(layer(x) - layer.get_base_layer()(x), 2.0 * layer.update(x))


def test_a_start_that_divides_by_the_scale_follows_rsloras():
    W = weight()
    place = Site("layer", W, 4, 6.0, torch_stream(0, Purpose.ADAPTER, "layer"), rslora=True)
    U, S, Vt = svd(W)
    pair = Milora().factors(place)
    close(3.0 * pair.product(), (U[:, -4:] * S[-4:]) @ Vt[-4:])
    close(Milora().residual(place, pair), W - 3.0 * pair.product())
