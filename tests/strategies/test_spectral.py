"""Spectral dual averaging against dense float64 matrices; its noise level against real runs."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from fedsvd.client.rule import LocalRule
from fedsvd.errors import InputError
from fedsvd.experiment import prepare
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.rounds.attempt import one_round
from fedsvd.rounds.noise import gain
from fedsvd.settings import TrainingSettings
from fedsvd.strategies import FFA, FedSVD, FedSvdAlternate, NoiseView, Update
from fedsvd.strategies.build import build_strategy
from fedsvd.strategies.spectral import Level, ratios, shrink
from fedsvd.strategies.use import check_use
from tests.conftest import compose_settings
from tests.tiny import make_inputs

D_OUT, D_IN, R = 9, 12, 3


@pytest.mark.parametrize("beta", [0.02, 0.3, 1.0])
def test_shrinkage_undoes_what_noise_does_to_a_spike(beta):
    """A signal x is seen at y; its best size is x times the cosines of both singular vectors."""
    for z in (0.5, 1 + beta**0.5 - 1e-9, 1 + beta**0.5 + 0.01, 2.0 + beta, 9.0):
        best = 0.0
        if z > 1 + beta**0.5:
            seen = lambda x: np.sqrt((x + 1 / x) * (x + beta / x))  # noqa: E731
            x = brentq(lambda x, seen=seen, z=z: seen(x) - z, beta**0.25, 100)
            left = (x**4 - beta) / (x**4 + beta * x**2)
            right = (x**4 - beta) / (x**4 + x**2)
            best = x * np.sqrt(left * right)
        found = float(shrink(torch.tensor([3 * z], dtype=torch.float64), Level(3.0, beta)))
        assert found == pytest.approx(3 * best, abs=1e-6)


def test_a_spike_at_twice_the_edge_keeps_a_tenth_of_the_error():
    rng, d, r = np.random.default_rng(0), 384, 8
    raw, ours, scalar = 0.0, 0.0, 0.0
    for _ in range(20):
        u, v = rng.normal(size=d), rng.normal(size=r)
        X = 2 * (np.sqrt(d) + np.sqrt(r)) * np.outer(u, v) / np.linalg.norm(u) / np.linalg.norm(v)
        Y = X + rng.normal(size=X.shape)
        U, s, Vh = np.linalg.svd(Y, full_matrices=False)
        Z = U * shrink(torch.tensor(s), Level(d**0.5, r / d)).numpy() @ Vh
        raw += ((Y - X) ** 2).sum()
        ours += ((Z - X) ** 2).sum()
        scalar += ((((X * Y).sum() / (Y * Y).sum()) * Y - X) ** 2).sum()
    assert ours / raw == pytest.approx(0.10, abs=0.02)
    energy = 4 * (np.sqrt(d) + np.sqrt(r)) ** 2
    assert scalar / raw == pytest.approx(energy / (energy + d * r), abs=0.02)  # 0.40: one multiple


def dense_shrink(M, scale, beta, strength):
    U, s, Vh = np.linalg.svd(M, full_matrices=False)
    z = s / scale
    inside = np.maximum((z**2 - beta - 1) ** 2 - 4 * beta, 0)
    best = np.where(z > 1 + np.sqrt(beta), scale * np.sqrt(inside) / np.maximum(z, 1e-9), 0)
    return (U * (s + strength * (best - s))) @ Vh


def orthonormal(rng):
    return np.linalg.qr(rng.normal(size=(D_IN, R)))[0].T


@pytest.mark.parametrize("strength", [0.4, 1.0])
@pytest.mark.parametrize(
    ("rule", "options"),
    [(FedSVD, {}), (FedSVD, {"period": 2}), (FedSvdAlternate, {}), (FedSvdAlternate, {"hold": 2}),
     (FedSvdAlternate, {"first": "A"})],
)  # fmt: skip
def test_the_broadcast_is_the_shrunk_sum_of_raw_moves(rule, options, strength):
    rng, built = np.random.default_rng(1), rule(**options, strength=strength)
    state = AdapterState(
        {"l": LowRank(torch.tensor(orthonormal(rng)), torch.zeros(D_OUT, R).double())}
    )
    state, R_dense, spent = built.begin(state), np.zeros((D_OUT, D_IN)), [0.0, 0.0]
    dropped = 0
    for number in range(1, 8):
        state = AdapterState(state.factors, {}, number, {}, state.memory)
        pair, variance = state.factors["l"], 0.02 + 0.03 * number
        A, B = pair.A.numpy(), pair.B.numpy()
        (kind,) = built.trains_in(number)
        move = rng.normal(size=B.shape if kind == "B" else A.shape)
        R_dense = R_dense + (move @ A if kind == "B" else B @ move)
        spent[kind == "A"] += variance
        built.noise = NoiseView(variance, {"l": tuple(spent)})
        # Two clients whose moves have that mean.
        sent = [
            Update(k, 0.5, state.update({f"l.{kind}": torch.tensor((B if kind == "B" else A) + m)}))
            for k, m in enumerate((0.3 * move, 1.7 * move))
        ]
        state = built.aggregate(state, sent)
        energy, v = spent[0] * D_OUT + spent[1] * D_IN, sum(spent)
        expected = dense_shrink(R_dense, np.sqrt(energy), R * v / energy, strength)
        np.testing.assert_allclose(state.factors["l"].product().numpy(), expected, atol=1e-9)
        s = np.linalg.svd(R_dense)[1][:R]
        edge = np.sqrt(energy) * (1 + np.sqrt(R * v / energy))
        later = built.trains_in(number + 1)[0]
        np.testing.assert_allclose(ratios(state, later, built.noise)["l"], s / edge, atol=1e-9)
        dropped += (s < edge).sum()
        rests = state.factors["l"].A if later == "B" else state.factors["l"].B.mT
        torch.testing.assert_close(rests @ rests.mT, torch.eye(R).double())
    assert 0 < dropped < 7 * R  # some were below the edge and came back later or not; some above


def test_what_falls_below_the_edge_is_remembered():
    """At full strength all of B A is dropped at first; R holds it, and it comes back."""
    rng, rule = np.random.default_rng(2), FedSVD(strength=1.0)
    A, move = orthonormal(rng), rng.normal(size=(D_OUT, R))
    state = AdapterState({"l": LowRank(torch.tensor(A), torch.zeros(D_OUT, R).double())}, {}, 1)
    rule.noise = NoiseView(9.0, {"l": (9.0, 0.0)})
    step = state.factors["l"].B + torch.tensor(move)
    state = rule.aggregate(state, [Update(0, 1.0, state.update({"l.B": step}))])
    assert not state.factors["l"].B.any()
    rule.noise = NoiseView(0.0, {"l": (1e-9, 0.0)})
    state = rule.aggregate(state, [Update(0, 1.0, state)])
    np.testing.assert_allclose(state.factors["l"].product().numpy(), move @ A, atol=1e-6)


def test_ffa_shrinks_b_itself_where_the_noise_is_white():
    """A is no orthonormal one; the noise of B is white, that of B A is not."""
    rng, rule = np.random.default_rng(3), FFA(strength=1.0)
    A, move = rng.normal(size=(R, D_IN)), 3 * rng.normal(size=(D_OUT, R))
    state = AdapterState({"l": LowRank(torch.tensor(A), torch.zeros(D_OUT, R).double())}, {}, 1)
    rule.noise = NoiseView(0.5, {"l": (0.5 * (A**2).sum() / R, 0.0)})
    new = rule.aggregate(state, [Update(0, 1.0, state.update({"l.B": torch.tensor(move)}))])
    expected = dense_shrink(move, np.sqrt(0.5 * D_OUT), R / D_OUT, 1.0)
    np.testing.assert_allclose(new.factors["l"].B.numpy(), expected, atol=1e-12)
    assert torch.equal(new.factors["l"].A, state.factors["l"].A)


@pytest.mark.parametrize("rule", [FedSVD(), FFA(), FedSvdAlternate(), FedSvdAlternate(hold=3)])
def test_noise_alone_ends_at_the_edge(rule):
    """Also where A and B take turns and have other sizes; what the ratio is 1 of."""
    g, d_out, d_in, r, std = torch.Generator().manual_seed(0), 300, 180, 6, 0.1
    A = torch.linalg.qr(torch.randn(d_in, r, generator=g, dtype=torch.float64))[0].mT
    state = AdapterState({"l": LowRank(A, torch.zeros(d_out, r, dtype=torch.float64))})
    state, total = rule.begin(state), [0.0, 0.0]
    for number in range(1, 13):
        state = AdapterState(state.factors, {}, number)
        (kind,) = rule.trains_in(number)
        name = f"l.{kind}"
        old = state.tensors()[name]
        noise = std * torch.randn(old.shape, generator=g, dtype=torch.float64)
        total[kind == "A"] += std**2
        state = rule.aggregate(state, [Update(0, 1.0, state.update({name: old + noise}))])
    found = ratios(state, rule.trains_in(13)[0], NoiseView(0.0, {"l": tuple(total)}))["l"]
    assert 0.93 < found[0] < 1.05
    assert found[-1] > 0.6


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.7, 0.0), (0.5, 0.2)])
def test_the_gain_is_what_torchs_optimiser_makes_of_noise(momentum, decay):
    J, lr, total = 4, 0.3, 0.0
    for noisy in range(J):
        x = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([x], lr=lr, momentum=momentum, weight_decay=decay)
        for step in range(J):
            x.grad = torch.tensor([float(step == noisy)])
            optimizer.step()
        total += float(x.detach() ** 2)
    training = TrainingSettings(lr, J, 1, momentum=momentum, weight_decay=decay)
    assert gain(training, lr) == pytest.approx(total, rel=1e-5)
    if not momentum and not decay:
        assert gain(training, lr) == pytest.approx(lr**2 * J)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"), width=64)


NOISY = [
    "privacy.epsilon=null", "privacy.noise_multiplier=200", "adapter.init=orthonormal", "rounds=3",
    "training.schedule=linear", "engine.threads=1", "training.lr=0.01",
]  # fmt: skip
EXAMPLE = [
    "training.momentum=0.5", "training.local_steps=3", "privacy.public_counts=true",
    "partition=dirichlet", "partition.alpha=1", "privacy.accountant=rdp",
]  # fmt: skip


@pytest.mark.parametrize(
    "given",
    [EXAMPLE, ["privacy=client_level", "privacy.clip_quantile=0.5", "privacy.accountant=rdp"],
     [*EXAMPLE, "strategy=fedsvd_alternate"]],
    ids=["example", "client", "alternate"],
)  # fmt: skip
def test_the_known_level_is_that_of_real_releases(inputs, given):
    """Noise 200 times the clip: what a round releases is noise, and its size is the plan's."""
    settings = compose_settings(*inputs, *given, *NOISY)
    run = prepare(settings, build_strategy(settings.strategy))
    if "example" in str(settings.privacy.unit):
        plan = run.worker.plan.clients
        assert len({c.expected_batch for c in plan}) + len({c.noise_multiplier for c in plan}) > 1
    before = 0.0
    for number in (1, 2):
        old = run.state
        assert one_round(run, number)["failed"] == {}
        seen = run.strategy.noise
        total = {n: sum(v) for n, v in seen.total.items()}
        moved, entries = 0.0, 0
        for layer, pair in run.state.factors.items():
            was = old.factors[layer]
            D = (
                pair.product() - was.product()
            )  # in orthonormal rows or columns: as large as the move
            moved, entries = moved + float(D.square().sum()), entries + was.B.numel()
            assert total[layer] == pytest.approx(before + seen.variance, rel=1e-5)
        assert moved / entries == pytest.approx(seen.variance, rel=0.12)
        before += seen.variance
    values = [x for v in run_ratios(run).values() for x in v]
    assert 0.6 < min(values) < max(values) < 1.25


RULES = {  # whether the variance is known; the released one, as multiples of that of plain steps
    "fedavg": (True, 1.0),
    "ffa": (True, 1.0),
    "rolora": (True, 1.0),
    "la_lora": (False, 0.4),
    "prism": (False, None),
    "dp_fedadamw": (False, None),
    "lora_a2": (False, 0.7),
    "hetlora": (False, 1.0),
    "flexlora": (True, 1.0),
    "flexlora clients.ranks=[1,1,1,1,1,1]": (False, None),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_variance_is_stated_where_it_is_that_of_the_released_mean(rule, inputs, monkeypatch):
    """A rule that filters, pulls or leaves out makes something else of the noise."""
    known, multiple = RULES[rule]
    name, *more = rule.split()
    given = ["training.local_steps=4", "privacy.public_counts=true", f"strategy={name}", *more]
    settings = compose_settings(*inputs, *NOISY, "training.lr=1e-5", *given)
    run = prepare(settings, build_strategy(settings.strategy))
    moves, real = [], type(run.strategy).aggregate

    def aggregate(self, state, updates):
        for name, start in state.tensors().items():
            of = [(u.weight, u.state.tensors()[name].double()) for u in updates]
            if name.endswith((".A", ".B")) and all(x.shape == start.shape for _, x in of):
                moves.append(sum(p * (x - start.double()) for p, x in of).flatten())
        return real(self, state, updates)

    monkeypatch.setattr(type(run.strategy), "aggregate", aggregate)
    metrics = one_round(run, 1)
    assert metrics["failed"] == {}
    assert (run.strategy.noise is not None) == known
    if multiple is not None:
        moved = torch.cat([m for m in moves if bool(m.any())]).square().mean()
        assert float(moved) == pytest.approx(multiple * of_plain_steps(run, metrics), rel=0.15)
    if known:
        assert run.strategy.noise.variance == pytest.approx(of_plain_steps(run, metrics), rel=1e-9)


def of_plain_steps(run, metrics):
    """The variance of the mean of a first round's replies if every step of SGD were plain."""
    clients = metrics["clients"]
    sizes = np.array([len(run.worker.parts[k]) for k in clients], dtype=float)
    noises = [run.worker.plan.clients[k].noise_multiplier for k in clients]
    batches = [run.worker.plan.clients[k].expected_batch for k in clients]
    each = sizes / sizes.sum() * noises * run.settings.privacy.clip_norm / batches
    training = run.settings.training
    return float(training.lr**2 * training.local_steps * np.square(each).sum())


def run_ratios(run):
    return ratios(run.state, run.strategy.trains_in(3)[0], run.strategy.noise)


def test_clients_of_different_noise_weigh_in_with_their_own(inputs):
    settings = compose_settings(*inputs, *EXAMPLE, "privacy.epsilon=1", "clients.participation=all")
    run = prepare(settings, build_strategy(settings.strategy))
    metrics = one_round(run, 1)
    sizes = np.array([len(p) for p in run.worker.parts], dtype=float)
    p, plan = sizes / sizes.sum(), run.worker.plan.clients
    lr, clip = settings.training.lr, settings.privacy.clip_norm
    # Momentum 0.5 over three steps: the noise of the first moves 1.75 times, of the second 1.5.
    J = 1.75**2 + 1.5**2 + 1
    expected = sum(
        p[k] ** 2 * lr**2 * J * (c.noise_multiplier * clip / c.expected_batch) ** 2
        for k, c in enumerate(plan)
    )
    assert len({c.noise_multiplier for c in plan}) > 1
    assert run.strategy.noise.variance == pytest.approx(expected, rel=1e-9)
    assert set(metrics["noise_ratios"]) == set(run.state.factors)


def test_no_noise_is_known_without_privacy(inputs):
    for given in (["privacy=none"], ["training.optimizer=adamw"]):
        settings = compose_settings(*inputs, *given)
        run = prepare(settings, build_strategy(settings.strategy))
        metrics = one_round(run, 1)
        assert run.strategy.noise is None
        assert "noise_ratios" not in metrics
    settings = compose_settings(*inputs, "privacy=none", "strategy.strength=1")
    strong = prepare(settings, build_strategy(settings.strategy))
    one_round(strong, 1)
    plain = prepare(compose_settings(*inputs, "privacy=none"), FedSVD())
    one_round(plain, 1)
    assert strong.state.digest() == plain.state.digest()


def test_what_cannot_be_shrunk_is_refused(settings):
    strong = "strategy.strength=0.5"
    server = ["+strategy.server.name=adam", "+strategy.server.lr=1"]
    for given, key in (
        ([strong, "training.optimizer=adamw"], "training.optimizer"),
        ([strong, "training.factors=AB"], "training.factors"),
        (["strategy=ffa", strong, *server], "strategy.server"),
        ([strong, "strategy.split=balanced"], "strategy.strength"),
        (["strategy.strength=2"], "strategy.strength"),
        ([strong, "clients.ranks=[1,1,1,1,1,1]"], "clients.ranks"),
    ):
        chosen = settings(*given)
        with pytest.raises(InputError, match=key.replace(".", r"\.")):
            check_use(chosen, build_strategy(chosen.strategy))
    chosen = settings(strong)
    rule = build_strategy(chosen.strategy)
    check_use(chosen, rule)
    rule.local = LocalRule(smoothing=2.0)
    with pytest.raises(InputError, match=r"strategy: .*plain local steps"):
        check_use(chosen, rule)
