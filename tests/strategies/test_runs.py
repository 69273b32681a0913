"""Strategies that change what clients do, on a small real BERT: shapes, and who keeps what."""

from dataclasses import replace

import pytest
import torch

from fedsvd.client.app import PERSONAL
from fedsvd.client.training import train_locally
from fedsvd.experiment import prepare
from fedsvd.lowrank import LowRank, refactorise_pairs
from fedsvd.recorders.lines import trouble
from fedsvd.records import from_record
from fedsvd.rounds.attempt import one_round
from fedsvd.rounds.evaluation import evaluate
from fedsvd.strategies.build import build_strategy
from tests.conftest import TINY, compose_settings
from tests.privacy.steps import bare, moved_state
from tests.tiny import make_inputs

LAYERS, WIDTH, RANK = 4, 32, 8  # query and value of two blocks
SIZE = LAYERS * RANK * WIDTH * 4  # bytes of all A, and of all B
HEAD = 2 * WIDTH * 4
HEADERS = (LAYERS + 1) * 160  # more than NumPy's format puts before these arrays and the head
# A head that is not 0, or nothing below it would move in the first step; batches that are not empty.
MORE = [
    f"adapter.rank={RANK}", "model.head_init=texts", "data.label_texts=[[good,fine],[bad,poor]]",
    "training.batch_size=12",
]  # fmt: skip
INPUTS: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory):
    INPUTS[:] = [*make_inputs(tmp_path_factory.mktemp("small"), width=WIDTH), *MORE]


def start(*overrides):
    settings = compose_settings(*INPUTS, *overrides)
    return prepare(settings, build_strategy(settings.strategy))


def start_default(*overrides):
    """The default model, where steps must be large beside their rounding."""
    settings = compose_settings(*TINY, *overrides)
    return prepare(settings, build_strategy(settings.strategy))


def changed(before, after):
    """Which kinds of tensors differ."""
    return {
        kind
        for kind in ("A", "B", "W", "extra", "memory")
        for name, t in after.select((kind,)).items()
        if name not in before.tensors() or not torch.equal(before.tensors()[name], t)
    }


@pytest.mark.parametrize("privacy", ["dp_sgd", "none"])
def test_rolora_trains_b_then_a_and_sends_nothing_else(privacy):
    run = start("strategy=rolora", f"privacy={privacy}", "rounds=3")
    for number, kind in ((1, "B"), (2, "A"), (3, "B")):
        before = run.state
        metrics = one_round(run, number)
        assert metrics["failed"] == {}
        assert changed(before, run.state) == {kind, "extra"}
        assert 0 <= metrics["bytes_up"] - 3 * (SIZE + HEAD) < 3 * HEADERS
        if privacy == "dp_sgd":
            reports = metrics["reports"].values()
            assert all(r["steps"] == 1 and r["grad_norm_quantiles"][1] > 0 for r in reports)


def test_fedsa_keeps_every_b_with_its_client_over_rounds():
    run = start("strategy=fedsa", "privacy=none", "clients.participation=all", "training.lr=5")
    start_state, kept = run.state, []
    for number in (1, 2):
        metrics = one_round(run, number)
        assert metrics["failed"] == {}
        own = [from_record(c.state.array_records[PERSONAL]) for c in run.grid._contexts.values()]
        kept.append(own)
        assert all(name.endswith(".B") for name in own[0])
    assert changed(start_state, run.state) == {"A", "extra"}
    name = next(iter(kept[0][0]))
    assert not torch.equal(kept[0][0][name], kept[0][1][name])  # each client its own
    assert not torch.equal(kept[0][0][name], kept[1][0][name])  # and it goes on training
    # Evaluated as the mean over the clients' own models.
    worker = run.worker
    each = [
        worker.evaluate(run.state.update(own), worker.task.validation)["loss"] for own in kept[1]
    ]
    assert evaluate(run, "validation")["loss"] == pytest.approx(sum(each) / len(each), rel=1e-6)


def test_fedsa_can_leave_the_head_with_its_client_too():
    run = start("strategy=fedsa", "strategy.head=own", "privacy=none", "training.lr=5")
    before = run.state
    metrics = one_round(run, 1)
    assert metrics["failed"] == {}
    for way in ("bytes_up", "bytes_down"):
        assert 0 <= metrics[way] - 3 * SIZE < 3 * LAYERS * 160  # no head travels
    assert changed(before, run.state) <= {"A"}
    own = [from_record(run.grid._contexts[k].state.array_records[PERSONAL])
           for k in metrics["clients"]]  # fmt: skip
    heads = [{n: t for n, t in each.items() if not n.endswith(".B")} for each in own]
    assert all(set(head) == set(before.extra) for head in heads)
    name = next(iter(before.extra))
    assert not torch.equal(heads[0][name], heads[1][name])
    assert not torch.equal(heads[0][name], before.extra[name])


def test_a_client_of_fedsa_starts_from_the_b_it_kept(monkeypatch):
    from fedsvd.client import app

    run = start("strategy=fedsa", "privacy=none", "clients.participation=all")
    one_round(run, 1)
    own = from_record(run.grid._contexts[2].state.array_records[PERSONAL])
    seen, real = {}, app.train_locally

    def spy(worker, state, client, *rest):
        seen[client] = state
        return real(worker, state, client, *rest)

    monkeypatch.setattr(app, "train_locally", spy)
    one_round(run, 2)
    assert all(torch.equal(seen[2].tensors()[name], t) for name, t in own.items())


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedavgm", "mfac"])
def test_server_optimisers_keep_their_memory_in_the_state(name):
    run = start(f"strategy={name}", "strategy._target_=fedsvd.strategies.FFA", "privacy=none")
    one_round(run, 1)
    expected = {"fedavgm": {"m"}, "mfac": {"g"}}.get(name, {"m", "v"})
    assert {key[0] for key in run.state.memory} == expected
    assert {key[2:] for key in run.state.memory} == set(run.state.select(("B", "extra")))
    down = one_round(run, 2)["bytes_down"]
    assert down - 3 * (SIZE + HEAD) < 3 * HEADERS  # memory stays at the server


def test_refresh_with_a_folded_tail_trains_on():
    run = start("strategy=fedsvd_refresh", "strategy.tail=fold", "strategy.keep=3", "rounds=3")
    for number in (1, 2):
        assert one_round(run, number)["failed"] == {}
    assert len(run.state.base) == LAYERS


@pytest.mark.parametrize("name", ["flora", "flexlora", "hetlora", "fed_plora"])
def test_clients_of_different_ranks(name):
    ranks = [1, 2, 3, 4, 8, 8]
    run = start(
        f"strategy={name}", f"clients.ranks={ranks}", "clients.participation=all", "rounds=3",
        "privacy=dp_sgd", "privacy.epsilon=50",
    )  # fmt: skip
    for number in (1, 2):
        metrics = one_round(run, number)
        assert metrics["failed"] == {}
        rows = sum(ranks) * LAYERS * 2 * WIDTH * 4
        assert 0 <= metrics["bytes_up"] - rows - 6 * HEAD < 6 * (2 * LAYERS + 1) * 160
    assert {pair.rank for pair in run.state.factors.values()} == {RANK}
    assert evaluate(run, "validation")["loss"] > 0  # the model is back at the full rank


def test_a_client_of_rank_two_trains_its_two_components_alone():
    run = start("strategy=hetlora", "clients.ranks=[2,2,2,2,2,2]", "privacy=dp_sgd", "rounds=3")
    before = run.state
    one_round(run, 1)
    for layer, pair in run.state.factors.items():
        assert pair.A[:2].abs().sum() > 0
        assert not pair.B[:, 2:].any()
        assert not torch.equal(pair.A[:2], before.factors[layer].A[:2])
        assert not pair.A[2:].any()  # zero-padded means: nobody holds these


def test_la_lora_trains_one_factor_a_step(monkeypatch):
    from fedsvd.client import training

    for privacy in ("none", "dp_sgd"):
        run = start(
            "strategy=la_lora", f"privacy={privacy}", "training.local_steps=3", "rounds=3",
            "training.batch_size=90",  # everybody in every batch: an empty one moves nothing
        )  # fmt: skip
        seen, real = [], training.apply_rule

        def spy(rule, named, *more, seen=seen, real=real):
            real(rule, named, *more)
            moved = {n[-1] for n, p in named.items() if p.grad is not None and p.grad.any()}
            seen.append("".join(sorted(moved & {"A", "B"})))

        monkeypatch.setattr(training, "apply_rule", spy)
        assert one_round(run, 1)["failed"] == {}
        monkeypatch.setattr(training, "apply_rule", real)
        assert seen == ["B", "A", "B"] * 3
        assert changed(run.worker.initial, run.state) == {"A", "B", "extra"}
        assert run.worker.trains == ("A", "B")


def test_la_loras_factors_have_rates_of_their_own():
    """The same gradients: what moved is in the ratio of the rates."""
    moved = {}
    for rates in ((1.0, 1.0), (3.0, 0.5)):
        run = start_default(
            "strategy=la_lora", "privacy=none", "training.local_steps=2", "training.batch_size=48",
            f"strategy.rate_A={rates[0]}", f"strategy.rate_B={rates[1]}", "training.lr=1e-4",
            "adapter.init=pissa",
        )  # fmt: skip
        one_round(run, 1)
        before, after = run.worker.initial.tensors(), run.state.tensors()
        moved[rates] = {n: float((after[n] - t).norm()) for n, t in before.items()}
    for name, size in moved[1.0, 1.0].items():
        ratio = {"A": 3.0, "B": 0.5}.get(name[-1], 1.0)
        assert moved[3.0, 0.5][name] == pytest.approx(ratio * size, rel=0.02)


def test_la_loras_projected_step_is_the_plain_one_times_the_inverse():
    moved, given = {}, ["adapter.init=pissa", "adapter.alpha=12", "training.clip_norm=null"]
    for projected in ("false", "true"):
        run = start_default(
            "strategy=la_lora", "privacy=none", "training.batch_size=48", *given,
            f"strategy.projected={projected}", "training.lr=1e-3",
        )  # fmt: skip
        one_round(run, 1)
        first = run.worker.initial.factors
        moved[projected] = {n: p.B - first[n].B for n, p in run.state.factors.items()}
    for name, plain in moved["false"].items():
        A = first[name].A.double()
        expected = plain.double() @ torch.linalg.inv(A @ A.mT) / 1.5**2  # s = 12 / 8
        found = moved["true"][name].double()
        assert float((found - expected).norm() / expected.norm()) < 2e-2, name


@pytest.mark.parametrize("gradients", ["hooks", "loop"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_prisms_clients_step_the_product_whatever_its_factors(optimizer, gradients):
    """All examples are clipped; a clip of the factors' own gradients would tell them apart."""
    given = ["strategy=prism", f"training.optimizer={optimizer}", "adapter.rank=2"]
    run = start_default(*given, "privacy.clip_norm=1e-3", f"privacy.gradients={gradients}")
    rows = [int(r) for r in run.worker.parts[0]][:4]
    worker = bare(run.worker, rows)
    state = moved_state(run.worker)
    M = torch.tensor([[2.0, 1.0], [0.0, 0.4]])
    others = {n: LowRank(torch.linalg.inv(M) @ p.A, p.B @ M) for n, p in state.factors.items()}
    rule = replace(run.strategy.local, floor=0.0)
    if optimizer == "adamw":  # its moments are those of the least lift, so factors are balanced
        state = replace(state, factors=refactorise_pairs(state.factors, split="balanced"))
        turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
        others = {n: LowRank(turn.mT @ p.A, p.B @ turn) for n, p in state.factors.items()}
    found = [
        train_locally(worker, each, 0, 1, rule=rule).state.factors
        for each in (state, replace(state, factors=others))
    ]
    for name, one in found[0].items():
        before = state.factors[name].product()
        step, other = one.product() - before, found[1][name].product() - before
        assert float(step.norm()) > 1e-6 * float(before.norm())
        assert float((step - other).norm() / step.norm()) < 0.05, name


@pytest.mark.parametrize("privacy", ["dp_sgd", "none"])
def test_prism_leaves_balanced_factors(privacy):
    for optimizer in ("sgd", "adamw"):
        run = start(
            "strategy=prism", f"privacy={privacy}", "training.local_steps=2",
            f"training.optimizer={optimizer}", "training.lr=1e-3",
        )  # fmt: skip
        metrics = one_round(run, 1)
        assert metrics["failed"] == {}
        assert changed(run.worker.initial, run.state) == {"A", "B", "extra"}
        for pair in run.state.factors.values():  # balanced, and of full rank after the noise
            torch.testing.assert_close(pair.A @ pair.A.mT, pair.B.mT @ pair.B, rtol=1e-3, atol=1e-6)
        if privacy == "dp_sgd":
            assert all(torch.linalg.matrix_rank(p.B) == 8 for p in run.state.factors.values())


def test_dp_fedadamws_moments_travel_and_stay_in_the_state():
    run = start(
        "strategy=dp_fedadamw", "training.optimizer=adamw", "training.lr=1e-3", "rounds=3",
        "training.local_steps=2",
    )  # fmt: skip
    for number in (1, 2):
        metrics = one_round(run, number)
        assert metrics["failed"] == {}
        numbers = 2 * LAYERS + 2  # one a tensor, and the steps
        up = metrics["bytes_up"] - 3 * (2 * SIZE + HEAD + 4 * numbers)
        assert 0 <= up < 3 * (2 * LAYERS + 1 + numbers) * 160
        kinds = {name.split(".")[1] for name in run.state.memory}
        assert kinds == {"v", "move", "steps"}
        assert float(run.state.memory["adam.steps"]) == 2 * number
    down = metrics["bytes_down"] - 3 * 2 * (2 * SIZE + HEAD)  # the last move is as large as that
    assert 0 <= down < 3 * (2 * (2 * LAYERS + 1) + numbers) * 180
    plan = run.worker.plan.clients[0]
    noise = plan.noise_multiplier * run.settings.privacy.clip_norm / plan.expected_batch
    v = [float(t) for n, t in run.state.memory.items() if n.startswith("adam.v.")]
    assert min(v) / (1 - 0.999**4) > 0.8 * noise**2  # what noise alone makes of it, and signal


@pytest.mark.parametrize(
    "name", ["median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median", "l21"]
)
def test_robust_rules_hold_against_a_client_that_sends_noise(name):
    settings = [
        "clients.participation=all", "clients.number=7", "privacy=none", "attack.std=100",
    ]  # fmt: skip
    run = start(f"strategy={name}", "attack=gaussian", *settings)
    plain = start("strategy=ffa", "attack=gaussian", *settings)
    for each in (run, plain):
        metrics = one_round(each, 1)
        assert metrics["failed"] == {}
        assert "not_aggregated" not in metrics
    B = max(float(pair.B.abs().max()) for pair in run.state.factors.values())
    assert 0 < B < 1 < max(float(pair.B.abs().max()) for pair in plain.state.factors.values())


def test_a_round_of_which_a_stock_strategy_makes_nothing_is_told():
    run = start("strategy=bulyan", "clients.participation=all", "privacy=none")  # 6 of 7
    before = run.state.digest()
    metrics = one_round(run, 1)
    assert (metrics["failed"], metrics["not_aggregated"]) == ({}, 6)
    assert (run.state.digest(), run.state.round) == (before, 1)
    assert any("made nothing of 6 valid replies" in line for line in trouble(metrics))


def test_a_client_of_lora_a2_moves_as_many_components_as_its_rank_says(monkeypatch):
    from fedsvd.client import app

    moved, real = {}, app.train_locally

    def spy(worker, state, client, *rest):
        found = real(worker, state, client, *rest)
        for layer, pair in found.state.factors.items():
            old = state.factors[layer]
            A, B = (pair.A != old.A).any(1), (pair.B != old.B).any(0)
            moved[client] = moved.get(client, 0) + int(A.sum()) + int(B.sum())
        return found

    monkeypatch.setattr(app, "train_locally", spy)
    ranks = [1, 2, 3, 4, 8, 8]
    run = start(
        "strategy=lora_a2", f"clients.ranks={ranks}", "clients.participation=all", "rounds=2",
        "privacy=dp_sgd", "training.local_steps=2",
    )  # fmt: skip
    for number, kind in ((1, "B"), (2, "A")):
        moved.clear()
        before = run.state
        metrics = one_round(run, number)
        assert metrics["failed"] == {}
        assert changed(before, run.state) == {kind, "extra"}
        most = {k: LAYERS * r for k, r in enumerate(ranks)}
        assert moved == most  # noise moves also what has no gradient yet
        # The step that chooses is paid for.
        assert all(r["steps"] == 2 for r in metrics["reports"].values())


def test_a_client_of_fed_plora_starts_from_the_whole_global_model(monkeypatch):
    from fedsvd.client import app

    ranks = [1, 2, 3, 4, 8, 8]
    run = start(
        "strategy=fed_plora", f"clients.ranks={ranks}", "clients.participation=all", "rounds=2",
        "privacy=none", "training.lr=5",
    )  # fmt: skip
    one_round(run, 1)
    seen, real = {}, app.train_locally

    def spy(worker, state, client, *rest):
        if client in (0, 3):
            seen[client] = worker.evaluate(state, worker.task.validation)["loss"]
        return real(worker, state, client, *rest)

    monkeypatch.setattr(app, "train_locally", spy)
    whole = evaluate(run, "validation")["loss"]
    one_round(run, 2)
    assert seen == pytest.approx({0: whole, 3: whole}, rel=1e-5)
    assert run.state.base == {}


def test_alternate_trains_one_side_a_round_against_an_orthonormal_other():
    run = start("strategy=fedsvd_alternate", "privacy=dp_sgd", "rounds=3")
    for number in (1, 2, 3):
        rests = [p.A.mT if number % 2 else p.B for p in run.state.factors.values()]
        for Q in rests:
            torch.testing.assert_close(Q.mT @ Q, torch.eye(RANK), atol=1e-5, rtol=0)
        metrics = one_round(run, number)
        assert metrics["failed"] == {}
        assert 0 <= metrics["bytes_up"] - 3 * (SIZE + HEAD) < 3 * HEADERS
        # Hooks are of what trains now: everybody's examples have gradients.
        assert all(r["grad_norm_quantiles"][1] > 0 for r in metrics["reports"].values())
    assert changed(run.worker.initial, run.state) == {"A", "B", "extra"}
