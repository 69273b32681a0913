"""Strategies that change what clients do, on the real default model, cut short."""

import pytest
import torch

from fedsvd.client.app import PERSONAL
from fedsvd.experiment import prepare
from fedsvd.recorders.lines import trouble
from fedsvd.records import from_record
from fedsvd.rounds.attempt import one_round
from fedsvd.rounds.evaluation import evaluate
from fedsvd.strategies.build import build_strategy
from tests.conftest import TINY, compose_settings


def start(*overrides):
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
    A, B, head = 12 * 8 * 384 * 4, 12 * 384 * 8 * 4, 2 * 384 * 4
    for number, kind in ((1, "B"), (2, "A"), (3, "B")):
        before = run.state
        metrics = one_round(run, number)
        assert metrics["failed"] == {}
        assert changed(before, run.state) == {kind, "extra"}
        size = A if kind == "A" else B
        assert 0 <= metrics["bytes_up"] - 3 * (size + head) < 3 * 25 * 160
        if privacy == "dp_sgd":
            reports = metrics["reports"].values()
            assert all(r["steps"] == 1 and r["grad_norm_quantiles"][1] > 0 for r in reports)


def test_fedsa_keeps_every_b_with_its_client_over_rounds():
    run = start("strategy=fedsa", "privacy=none", "clients.participation=all", "training.lr=5")
    start_state, kept = run.state, []
    for number in (1, 2):
        metrics = one_round(run, number)
        assert metrics["failed"] == {}
        own = [from_record(c.state.array_records[PERSONAL]) for c in run.grid._contexts]
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
    B, head = 12 * 384 * 8 * 4, 2 * 384 * 4
    assert down - 3 * (B + head) < 3 * 25 * 160  # memory stays at the server


def test_refresh_with_a_folded_tail_trains_on():
    run = start("strategy=fedsvd_refresh", "strategy.tail=fold", "strategy.keep=3", "rounds=3")
    for number in (1, 2):
        assert one_round(run, number)["failed"] == {}
    assert len(run.state.base) == 12


@pytest.mark.parametrize("name", ["flora", "flexlora", "hetlora"])
def test_clients_of_different_ranks(name):
    ranks = [1, 2, 3, 4, 8, 8]
    run = start(
        f"strategy={name}", f"clients.ranks={ranks}", "clients.participation=all", "rounds=3",
        "privacy=dp_sgd", "privacy.epsilon=50",
    )  # fmt: skip
    for number in (1, 2):
        metrics = one_round(run, number)
        assert metrics["failed"] == {}
        rows, head = sum(ranks) * 12 * (384 + 384) * 4, 6 * 2 * 384 * 4
        assert 0 <= metrics["bytes_up"] - rows - head < 6 * 25 * 160
    assert {pair.rank for pair in run.state.factors.values()} == {8}
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
            "training.batch_size=48",  # everybody in every batch: an empty one moves nothing
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
