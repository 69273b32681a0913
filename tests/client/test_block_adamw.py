"""DP-FedAdamW's local step and server step against NumPy, over two rounds of two clients."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedsvd.client.block_adamw import MOVE, SECOND, STEPS, BlockAdamW
from fedsvd.client.rule import LocalRule
from fedsvd.client.training import make_steps
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.strategies import DpFedAdamW, Update
from fedsvd.testing.architectures import ARCHITECTURES, small_worker

RULE = LocalRule(steps="block_adamw", gamma=0.5, floor=0.2, tau=1e-3)
LR, DECAY, NOISE, K = 0.1, 0.01, 0.3, 3
NAMES = ("l.A", "l.B", "head")
SHAPES = {"l.A": (2, 4), "l.B": (3, 2), "head": (2, 3)}
P = (0.25, 0.75)


def gradients(client, round):
    g = torch.Generator().manual_seed(10 * client + round)
    return [
        {n: torch.randn(SHAPES[n], generator=g, dtype=torch.float64) for n in NAMES}
        for _ in range(K)
    ]


def start():
    g = torch.Generator().manual_seed(5)
    A, B, h = (torch.randn(SHAPES[n], generator=g, dtype=torch.float64) for n in NAMES)
    return AdapterState({"l": LowRank(A, B)}, {"head": h}, 1)


def client_step(state, client, round):
    named = {n: nn.Parameter(state.tensors()[n].clone()) for n in NAMES}
    steps = BlockAdamW(named, LR, DECAY, RULE, NOISE, state.memory, RULE.gamma, K)
    for each in gradients(client, round):
        for n, p in named.items():
            p.grad = each[n]
        steps.step()
    return state.update({**{n: p.detach() for n, p in named.items()}, **steps.moments()})


def test_two_rounds_by_hand():
    state, rule = start(), DpFedAdamW(gamma=0.5, floor=0.2, tau=1e-3)
    assert rule.local == RULE
    x = {n: t.numpy().copy() for n, t in state.tensors().items()}
    v_bar, move, t0 = dict.fromkeys(NAMES, 0.0), {n: 0 * x[n] for n in NAMES}, 0
    for round in (1, 2):
        assert set(rule.tells(state)) == {f"memory.{n}" for n in state.memory}
        sent, means = [], []
        for k in range(2):
            w = {n: x[n].copy() for n in NAMES}
            m = {n: 0 * x[n] for n in NAMES}
            v = {n: 0 * x[n] + v_bar[n] for n in NAMES}
            for i, each in enumerate(gradients(k, round), start=1):
                for n in NAMES:
                    g = each[n].numpy()
                    m[n] = 0.9 * m[n] + 0.1 * g
                    v[n] = 0.999 * v[n] + 0.001 * g**2
                    own = v[n] / (1 - 0.999 ** (t0 + i)) - NOISE**2
                    root = np.sqrt(np.maximum(own, (0.2 * NOISE) ** 2))
                    step = m[n] / (1 - 0.9**i) / (root + 1e-3)
                    w[n] = w[n] - LR * (step + DECAY * w[n]) + 0.5 / K * move[n]
            sent.append(w)
            means.append({n: v[n].mean() for n in NAMES})
        new = {n: P[0] * sent[0][n] + P[1] * sent[1][n] for n in NAMES}
        v_bar = {n: P[0] * means[0][n] + P[1] * means[1][n] for n in NAMES}
        move, t0 = {n: new[n] - x[n] for n in NAMES}, t0 + K
        updates = [Update(k, P[k], client_step(state, k, round)) for k in range(2)]
        state = replace(rule.aggregate(state, updates), round=round + 1)
        x = new
        for n in NAMES:
            np.testing.assert_allclose(state.tensors()[n].numpy(), new[n], atol=1e-12)
            np.testing.assert_allclose(float(state.memory[f"{SECOND}{n}"]), v_bar[n], rtol=1e-12)
            np.testing.assert_allclose(state.memory[f"{MOVE}{n}"].numpy(), move[n], atol=1e-12)
        assert float(state.memory[STEPS]) == t0
    assert any((v_bar[n] > 0) and np.any(move[n]) for n in NAMES)


def test_pure_noise_leaves_the_corrected_second_moment_at_zero_on_average():
    """E[v^] is the noise's variance, so what is left is signal: the paper's correction."""
    g = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.zeros(400, 500, dtype=torch.float64))
    steps = BlockAdamW({"l.A": p}, LR, 0.0, RULE, NOISE, {}, 0.0, 1)
    for _ in range(5):
        p.grad = NOISE * torch.randn(p.shape, generator=g, dtype=torch.float64)
        steps.step()
    v_bar = float(steps.moments()[f"memory.{SECOND}l.A"])
    assert v_bar / (1 - 0.999**5) == pytest.approx(NOISE**2, rel=0.01)


def test_without_correction_pull_and_blocks_it_is_torchs_adamw():
    rule = replace(RULE, floor=0.0, tau=1e-8)
    ours, theirs = (nn.Parameter(start().factors["l"].A.clone()) for _ in range(2))
    steps = BlockAdamW({"l.A": ours}, LR, DECAY, rule, 0.0, {}, 0.0, K)
    torchs = torch.optim.AdamW([theirs], lr=LR, weight_decay=DECAY, eps=1e-8)
    for each in gradients(0, 1):
        ours.grad, theirs.grad = each["l.A"].clone(), each["l.A"].clone()
        steps.step()
        torchs.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("schedule", "round", "share"), [
    ("constant", 3, 1.0), ("linear", 1, 1.0), ("linear", 2, 3 / 4), ("linear", 4, 1 / 2),
])  # fmt: skip
def test_the_pull_follows_a_falling_rate(schedule, round, share):
    """The paper's - lr gamma Delta / K, Delta = - D / (K lr) with the rate of the round of D."""
    given = ["rounds=4", f"training.schedule={schedule}", "training.local_steps=5", "privacy=none"]
    worker = small_worker(ARCHITECTURES["BERT"], *given)
    named = worker.model.trainable()
    moves = {f"{MOVE}{n}": torch.full_like(p, 2.0) for n, p in named.items()}
    state = replace(worker.initial, memory=moves)
    before = {n: p.detach().clone() for n, p in named.items()}
    steps = make_steps(worker, named, state, 0, round, RULE)
    for p in named.values():
        p.grad = torch.zeros_like(p)
    steps.step()
    for n, p in named.items():
        expected = before[n] + share * RULE.gamma * 2.0 / 5
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-6)


def test_it_asks_for_a_number_a_tensor():
    rule, state = DpFedAdamW(), start()
    asked = rule.asks(state.tensors())
    assert set(asked) == {f"memory.{SECOND}{n}" for n in NAMES} | {f"memory.{STEPS}"}
    assert all(t.shape == () and t.dtype == torch.float64 for t in asked.values())
    assert rule.tells(state) == {}
