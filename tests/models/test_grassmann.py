"""The Grassmann head: geodesic steps after the noise, and the mean of projectors."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch

from fedsvd.adapters import lora
from fedsvd.client import training
from fedsvd.client.riemannian import riemannian_step
from fedsvd.lowrank import AdapterState, average
from fedsvd.lowrank.grassmann import SUBSPACES, geodesic, mean_subspaces, orthonormalised
from fedsvd.models.classifier import Classifier
from fedsvd.models.fixed_heads import GrassmannHead, fixed_head, subspaces
from fedsvd.privacy.dpsgd import attach_hooks
from fedsvd.privacy.hooks import Hooks
from fedsvd.strategies import FedAvg
from fedsvd.strategies.base import Update
from fedsvd.strategies.server import ServerOptimizer
from fedsvd.testing.architectures import ARCHITECTURES, small_backbone, small_worker

K, M, D = 3, 2, 7


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=g(seed), dtype=torch.float64)


def bases(seed=0):
    return subspaces(D, K, M, g(seed))


def projectors(S):
    return S.double().mT @ S.double()


def near(x, y, atol=1e-9):
    torch.testing.assert_close(x, y, rtol=0, atol=atol)


@pytest.mark.parametrize("size", [1e-3, 0.5, 4.0])
def test_a_step_is_the_geodesic_of_projectors(size):
    """P(t) = exp(Omega) P exp(-Omega) with Omega = H^T S - S^T H, by SciPy's matrix exponential."""
    S, direction = bases(), size * draw(K, M, D, seed=1)
    found = geodesic(S, direction)
    near(found @ found.mT, torch.eye(M, dtype=torch.float64).expand(K, M, M))
    for k in range(K):
        s, d = S[k].numpy(), direction[k].numpy()
        h = d - d @ s.T @ s
        turn = scipy.linalg.expm(h.T @ s - s.T @ h)
        near(projectors(found)[k], torch.from_numpy(turn @ s.T @ s @ turn.T))
    # What lies in the subspace itself moves nothing.
    near(projectors(geodesic(S, direction @ projectors(S))), projectors(S))


def test_the_mean_is_that_of_the_projectors():
    some, weights = [bases(seed) for seed in range(4)], [0.1, 0.2, 0.3, 0.4]
    found = mean_subspaces(some, weights, some[0])
    for k in range(K):
        mean = sum(w * projectors(S)[k] for w, S in zip(weights, some, strict=True)).numpy()
        _, vectors = np.linalg.eigh(mean)
        top = torch.from_numpy(vectors[:, -M:])
        near(projectors(found)[k], top @ top.mT)
    # Other bases of the same subspaces, also of other lengths, give the same subspaces.
    mixed = [draw(K, M, M, seed=9 + i) @ S for i, S in enumerate(some)]
    spans = [torch.linalg.qr(S.mT)[0].mT for S in mixed]
    near(projectors(mean_subspaces(spans, [2 * w for w in weights], some[0])), projectors(found))
    near(projectors(mean_subspaces([some[1]], [1.0], some[0])), projectors(some[1]))
    near(mean_subspaces([some[0]] * 2, [0.5, 0.5], some[0]), some[0])  # that very basis
    # The mean of bases that are turned against each other would be something else, even nothing.
    half = mean_subspaces([some[0], -some[0]], [0.5, 0.5], some[0])
    near(projectors(half), projectors(some[0]))


def test_states_are_averaged_so_and_a_server_optimiser_leaves_the_subspaces_alone():
    old = AdapterState({}, {SUBSPACES: bases().float(), "head.other": draw(4).float()}, 1)
    states = [
        old.update({SUBSPACES: bases(s).float(), "head.other": draw(4, seed=s).float()})
        for s in (1, 2)
    ]
    updates = [Update(i, 0.5, state) for i, state in enumerate(states)]
    expected = mean_subspaces(
        [s.extra[SUBSPACES] for s in states], [0.5, 0.5], old.extra[SUBSPACES]
    )
    for new in (FedAvg().aggregate(old, updates), average(states, [1, 1], into=old)):
        assert torch.equal(new.extra[SUBSPACES], expected)
        near(
            new.extra["head.other"],
            (states[0].extra["head.other"] + states[1].extra["head.other"]) / 2,
            1e-6,
        )
    stepped = ServerOptimizer("adam", 0.1).step(old, new)
    assert torch.equal(stepped.extra[SUBSPACES], expected)
    assert set(stepped.memory) == {"m.head.other", "v.head.other"}
    assert torch.equal(average([old, old], [1, 1]).extra[SUBSPACES], old.extra[SUBSPACES])


def test_per_example_gradients_are_those_of_each_example():
    head = GrassmannHead(bases()).requires_grad_(True).train()
    x, labels = draw(5, D, seed=2), torch.tensor([0, 1, 2, 0, 1])
    expected = torch.stack([
        torch.autograd.grad(
            torch.nn.functional.cross_entropy(25 * head(x[i : i + 1]), labels[i : i + 1]),
            head.subspaces,
        )[0]
        for i in range(5)
    ])  # fmt: skip
    hooks = attach_hooks(head)
    torch.nn.functional.cross_entropy(25 * head(x), labels, reduction="sum").backward()
    near(head.subspaces.grad_sample, expected)
    hooks.cleanup()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_riemannian_step_follows_the_gradient_and_the_optimiser_does_not_move_it_again(momentum):
    p = torch.nn.Parameter(bases())
    optimizer = torch.optim.AdamW([p], lr=0.1, weight_decay=0.5)
    step, S, buffer = riemannian_step([p], 0.1, momentum), p.detach().clone(), 0
    for number in range(3):
        gradient = draw(K, M, D, seed=number)
        p.grad = gradient.clone()
        step()
        assert p.grad is None
        optimizer.step()
        buffer = momentum * buffer + gradient
        S = geodesic(S, -0.1 * buffer)
        near(p.detach(), S)


def test_what_is_not_orthonormal_is_settled_and_what_is_keeps_its_bits():
    head = GrassmannHead(bases().float())
    before = head.subspaces.clone()
    head.settle()
    assert torch.equal(head.subspaces, before)
    head.subspaces.mul_(1.3)
    head.settle()
    near(head.subspaces, before, 1e-6)
    head.subspaces.fill_(float("nan"))
    head.settle()


def grassmann_worker(*overrides):
    worker = small_worker(ARCHITECTURES["BERT"], "strategy=fedavg", *overrides)
    if worker.hooks is not None:
        worker.hooks.cleanup()
    settings = replace(worker.settings.adapter, rank=3, alpha=3.0, targets=("query", "value"))
    attached = lora.attach(small_backbone(ARCHITECTURES["BERT"]), settings, 0, ("A", "B"))
    head = fixed_head("grassmann", 16, 3, 0, torch.device("cpu"), dim=4)
    model = Classifier(
        attached, head, pooling="mean", normalize=False, scale=25.0, precision="fp32",
        head_trains=True,
    )  # fmt: skip
    hooks = Hooks(model) if worker.plan.per_example else None
    return replace(worker, model=model, hooks=hooks, use=type(worker.use)())


def test_a_client_takes_the_riemannian_step_of_its_mean_gradient():
    worker = grassmann_worker("privacy=none", "training.clip_norm=null", "training.lr=0.05")
    S = worker.initial.extra[SUBSPACES]
    rows = [int(i) for i in worker.parts[0]]  # the batch is the whole part
    loss = worker.losses(rows).sum() / worker.plan.clients[0].expected_batch
    (gradient,) = torch.autograd.grad(loss, worker.model.subspaces())
    found = training.train_locally(worker, worker.initial, 0, 1).state.extra[SUBSPACES]
    near(found.double(), geodesic(S, -0.05 * gradient), 1e-5)
    assert float((projectors(found) - projectors(S)).norm()) > 1e-3


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_under_privacy_the_subspaces_get_noise_and_stay_subspaces(optimizer):
    given = [
        "privacy.epsilon=null",
        "privacy.noise_multiplier=1",
        f"training.optimizer={optimizer}",
    ]
    worker = grassmann_worker(*given)
    states = [training.train_locally(worker, worker.initial, 0, r).state for r in (1, 2)]
    found = [state.extra[SUBSPACES].double() for state in states]
    assert float((projectors(found[0]) - projectors(found[1])).norm()) > 1e-3  # another noise
    for S in found:
        near(S @ S.mT, torch.eye(4, dtype=torch.float64).expand(3, 4, 4), 1e-5)


def test_a_state_of_a_strategy_that_does_not_average_is_settled_in_the_model():
    worker = grassmann_worker("privacy=none")
    state = worker.initial.update({SUBSPACES: 2 * worker.initial.extra[SUBSPACES]})
    worker.model.write(state)
    near(worker.model.head.subspaces.detach(), worker.initial.extra[SUBSPACES], 1e-5)
    near(orthonormalised(state.extra[SUBSPACES]).float(), worker.initial.extra[SUBSPACES], 1e-5)
