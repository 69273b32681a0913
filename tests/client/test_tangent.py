"""PRISM's private step against dense per-example gradients, projections and SVDs in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedsvd.client.rule import LocalRule
from fedsvd.client.tangent import EPSILON, MOST_CONDITION, TangentStep
from fedsvd.client.training import plain_step
from fedsvd.lowrank import LowRank
from fedsvd.lowrank.tangent import frame
from fedsvd.privacy.dpsgd import attach_hooks, dp_step, make_optimizer
from fedsvd.settings import TrainingSettings
from tests.lowrank.test_tangent import dense

D_OUT, D_IN, R, N, SCALE = 6, 8, 2, 5, 0.7
RULE = LocalRule(steps="tangent")
SGD = TrainingSettings(local_steps=2, batch_size=4, optimizer="sgd", lr=0.3)


class Tiny(nn.Module):
    """y = h tanh(s B A x), with a head h that trains."""

    def __init__(self, seed=0, start=1.0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.A = nn.Linear(D_IN, R, bias=False, dtype=torch.float64)
        self.B = nn.Linear(R, D_OUT, bias=False, dtype=torch.float64)
        self.head = nn.Linear(D_OUT, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
            self.B.weight.mul_(start)

    def forward(self, x):
        return self.head(torch.tanh(SCALE * self.B(self.A(x)))).squeeze(1)

    def named(self):
        return {"l.A": self.A.weight, "l.B": self.B.weight, "head.weight": self.head.weight}


def data(seed=1):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D_IN, generator=g, dtype=torch.float64)
    return x * torch.tensor([[0.01], [0.3], [1.0], [3.0], [0.5]]), torch.randn(
        N, generator=g
    ).double()


def by_hand(model, rows, clip):
    """The clipped sums of dense projections and of the head's gradients, and the norms."""
    x, y = data()
    A, B, h = (p.detach() for p in model.named().values())
    total, head, norms = np.zeros((D_OUT, D_IN)), np.zeros((1, D_OUT)), []
    for i in rows:
        Z, own = (B @ A).requires_grad_(), h.clone().requires_grad_()
        loss = 0.5 * (own @ torch.tanh(SCALE * Z @ x[i]) - y[i]).square().sum()
        G, g = (v.numpy() for v in torch.autograd.grad(loss, (Z, own)))
        P = dense(A, B, G)
        norms.append(np.sqrt((P**2).sum() + (g**2).sum()))
        w = min(1.0, clip / norms[-1])
        total, head = total + w * P, head + w * g
    return total, head, norms


def private(model, gradients, training=SGD, noise=0.0, clip=0.2, rule=RULE, generator=None):
    steps = TangentStep(model.named(), training, training.lr, rule, noise * clip / 4.0)
    if gradients == "hooks":
        attach_hooks(model)
    optimizer = make_optimizer(
        steps, noise_multiplier=noise, clip_norm=clip, expected_batch=4.0,
        generator=generator, gradients=gradients,
    )  # fmt: skip
    optimizer.coordinates = steps.coordinates
    return optimizer


def losses(model):
    x, y = data()
    x.requires_grad_()  # as a layer's input in a model does; hooks warn otherwise
    return lambda rows: 0.5 * (model(x[list(rows)]) - y[list(rows)]).square()


def truncated(Z):
    U, s, Vh = np.linalg.svd(Z)
    return (U[:, :R] * s[:R]) @ Vh[:R]


def product(model):
    return (model.B.weight @ model.A.weight).detach().numpy()


@pytest.mark.parametrize("gradients", ["hooks", "loop"])
@pytest.mark.parametrize("start", [1.0, 0.0])
def test_a_step_is_the_truncated_svd_of_the_clipped_dense_projections(gradients, start):
    model = Tiny(start=start)
    if start:
        total, head, norms = by_hand(model, range(N), 0.2)
    else:  # B = 0: G V V^T alone
        total, head, norms = at_zero(model)
    Z, h = product(model), model.head.weight.detach().numpy().copy()
    report = dp_step(private(model, gradients), [[0, 1, 2], [3, 4]], losses(model))
    assert min(norms) < 0.2 < max(norms)
    np.testing.assert_allclose(sorted(report.norms), sorted(norms), rtol=1e-6)
    np.testing.assert_allclose(product(model), truncated(Z - 0.3 / 4 * total), atol=1e-12)
    np.testing.assert_allclose(model.head.weight.detach(), h - 0.3 / 4 * head, atol=1e-12)
    A, B = model.A.weight.detach(), model.B.weight.detach()
    torch.testing.assert_close(A @ A.mT, B.mT @ B)


def at_zero(model):
    """As `by_hand` for B = 0, where the tangent space is that of the rows of A alone."""
    x, y = data()
    A, h = model.A.weight.detach(), model.head.weight.detach()
    Q = np.linalg.qr(A.numpy().T)[0]
    total, norms = np.zeros((D_OUT, D_IN)), []
    for i in range(N):
        G = -SCALE * float(y[i]) * np.outer(h.numpy()[0], x[i].numpy())  # tanh'(0) = 1, tanh(0) = 0
        P = G @ Q @ Q.T
        norms.append(np.linalg.norm(P))
        total = total + min(1.0, 0.2 / norms[-1]) * P
    return total, np.zeros((1, D_OUT)), norms


@pytest.mark.parametrize("gradients", ["hooks", "loop"])
def test_one_example_moves_the_noised_sum_by_at_most_the_clip(gradients):
    """In the norm in which noise is isotropic: Frobenius of the matrices, with the head."""
    clip, seen = 0.05, []
    for rows in (range(N), range(N - 1), [0, 1, 2, 4]):
        model = Tiny()
        optimizer = private(model, gradients, clip=clip)
        at = frame(LowRank(model.A.weight.detach(), model.B.weight.detach()))
        held = {}

        def keep(_, model=model, at=at, held=held):
            S, T, h = (4.0 * p.grad for p in model.named().values())
            held["sum"] = torch.cat([(T @ at.V.mT + at.U @ S).flatten(), h.flatten()])
            held["plain"] = torch.cat([S.flatten(), T.flatten(), h.flatten()])

        optimizer.attach_step_hook(keep)
        dp_step(optimizer, [list(rows)], losses(model))
        seen.append(held)
    for neighbour in seen[1:]:
        for kind in ("sum", "plain"):  # what noise is added to, and what it means
            gap = float((seen[0][kind] - neighbour[kind]).norm())
            assert gap == pytest.approx(clip, rel=1e-9)  # that example is longer than the clip


def test_noise_is_added_to_each_coordinate_alone():
    model, sigma, clip = Tiny(), 3.0, 0.5
    found = []
    generator = np.random.default_rng(0)
    optimizer = private(model, "loop", noise=sigma, clip=clip, generator=generator)
    optimizer.attach_step_hook(
        lambda _: found.append(torch.cat([p.grad.flatten() for p in model.named().values()]))
    )
    for _ in range(60):  # empty batches: noise alone
        dp_step(optimizer, [], losses(model))
    values = torch.stack(found) * 4.0 / (sigma * clip)
    assert values.shape[1] == R * (D_IN + D_OUT) + D_OUT
    count = values.numel()
    assert abs(float(values.square().mean()) - 1) < 4 * (2 / count) ** 0.5
    assert abs(float(values.mean())) < 4 / count**0.5


def test_the_adaptive_direction_by_hand():
    """Two steps with dense least-squares lifts, eigendecompositions and floors by NumPy."""
    training, rule = replace(SGD, optimizer="adamw", weight_decay=0.1), replace(RULE, floor=0.8)
    model, noise = Tiny(), 0.05  # of each coordinate, for the floors
    steps = TangentStep(model.named(), training, 0.3, rule, noise)
    moments = {}
    for k in (1, 2):
        A, B = model.A.weight.detach().numpy().copy(), model.B.weight.detach().numpy().copy()
        total, _, _ = by_hand(model, range(N), 1e9)
        # The least lift, dense: vec(dB A + B dA) = vec P.
        system = np.hstack([np.kron(np.eye(D_OUT), A.T), np.kron(B, np.eye(D_IN))])
        best = np.linalg.lstsq(system, (total / 4).ravel(), rcond=1e-10)[0]
        dB, dA = best[: D_OUT * R].reshape(D_OUT, R), best[D_OUT * R :].reshape(R, D_IN)
        floor_B = np.trace(np.linalg.inv(A @ A.T)) / R * (D_OUT - R) / D_OUT
        floor_A = np.trace(np.linalg.inv(B.T @ B)) / R
        u = {}
        for name, d, floor in (("B", dB, floor_B), ("A", dA.T, floor_A)):
            m, V = moments.get(name, (0 * d, np.zeros((R, R))))
            m, V = 0.9 * m + 0.1 * d, 0.999 * V + 0.001 * d.T @ d / len(d)
            moments[name] = (m, V)
            values, vectors = np.linalg.eigh(V / (1 - 0.999**k))
            values = np.maximum(values + EPSILON, 0.8 * noise**2 * max(1, floor))
            values = np.maximum(values, values.max() / MOST_CONDITION)
            u[name] = m / (1 - 0.9**k) @ vectors @ np.diag(values**-0.5) @ vectors.T
        expected = truncated(0.97 * B @ A - 0.3 * (u["B"] @ A + B @ u["A"].T))
        plain_step(losses(model), steps, [list(range(N))], 4.0, None, coordinates=steps.coordinates)
        np.testing.assert_allclose(product(model), expected, atol=1e-9)


def test_the_preconditioner_takes_no_eigenvalue_below_a_ten_thousandth_of_the_largest():
    steps = TangentStep(Tiny().named(), replace(SGD, optimizer="adamw"), 0.3, RULE, 0.0)
    d = torch.eye(4, 2, dtype=torch.float64) * torch.tensor([2.0, 2e-3]).double()
    steps._steps = 1
    # V has the eigenvalues 1 and 1e-6; the latter counts as 1e-4.
    u = steps._preconditioned("l.B", d, 0.0, 4)
    np.testing.assert_allclose(u.numpy()[:2], np.diag([2.0, 0.2]), rtol=1e-6, atol=1e-12)


def test_without_privacy_the_whole_gradient_is_limited_in_the_tangent_space():
    model = Tiny()
    total, head, _ = by_hand(model, range(N), 1e9)
    Z, whole = product(model), np.sqrt((total**2).sum() + (head**2).sum()) / 4
    steps = TangentStep(model.named(), SGD, 0.3, RULE, 0.0)
    report = plain_step(
        losses(model), steps, [list(range(N))], 4.0, 0.1, coordinates=steps.coordinates
    )
    assert float(report.norms[0]) == pytest.approx(whole, rel=1e-6)
    expected = truncated(Z - 0.3 * 0.1 / whole * total / 4)
    np.testing.assert_allclose(product(model), expected, atol=1e-6)  # torch adds 1e-6 to the norm


def test_both_factors_must_train():
    model = Tiny()
    with pytest.raises(ValueError, match="both factors"):
        TangentStep({"l.B": model.B.weight}, SGD, 0.3, RULE, 0.0)
    steps = TangentStep(model.named(), SGD, 0.3, RULE, 0.0)
    with pytest.raises(ValueError, match="do not train"):
        steps.coordinates([torch.zeros(1, R, D_IN)])
