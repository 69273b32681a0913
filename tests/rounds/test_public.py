"""What the server looks at: the loss and its gradients on public texts, weights, activations."""

from dataclasses import replace

import pytest
import torch

from fedsvd.adapters import Initialiser, calibration
from fedsvd.client import worker
from fedsvd.data.tokens import tokenise
from fedsvd.errors import InputError
from fedsvd.experiment import prepare
from fedsvd.lowrank import LowRank
from fedsvd.lowrank.pair import kind_of
from fedsvd.models.backbone import load_tokenizer
from fedsvd.recorders.lines import header
from fedsvd.rounds.attempt import one_round
from fedsvd.rounds.describe import describe_start
from fedsvd.rounds.public import WorkerView
from fedsvd.rounds.start import check_start
from fedsvd.strategies.build import build_strategy
from fedsvd.strategies.use import check_use
from tests.conftest import TINY, compose_settings
from tests.tiny import make_inputs
from tests.tiny import run as run_whole


def start(*overrides):
    settings = compose_settings(*TINY, *overrides)
    strategy = build_strategy(settings.strategy)
    check_use(settings, strategy)
    return prepare(settings, strategy)


def test_public_examples_are_nobodys():
    run = start("data.public=20", "privacy=none")
    task, held = run.worker.task, {int(i) for part in run.worker.parts for i in part}
    assert 0 < len(task.public) < 50  # about 20: each text of training by itself
    parts = [held, *(set(map(int, p)) for p in (task.public, task.validation, task.test))]
    assert sum(map(len, parts)) == len(set().union(*parts))


@pytest.mark.parametrize("privacy", ["none", "dp_sgd"])
def test_gradients_on_public_texts_are_those_of_the_mean_loss(privacy):
    run = start("data.public=12", f"privacy={privacy}", "strategy=fedavg")
    one_round(run, 1)  # so that B is not 0
    view, its = WorkerView(run.worker), run.worker
    loss, found = view.gradients(run.state)
    assert set(found) == set(its.model.trainable())
    assert loss == pytest.approx(its.evaluate(run.state, its.task.public)["loss"], rel=1e-5)
    for name in ("head.weight", next(n for n in found if n.endswith(".B"))):
        # Along the gradient itself the loss must rise by its squared norm.
        step = 0.005 / float(found[name].norm())
        ends = [
            view.gradients(run.state.update({name: run.state.tensors()[name] + s * found[name]}))[0]
            for s in (step, -step)
        ]
        slope = (ends[0] - ends[1]) / (2 * step)
        assert slope == pytest.approx(float(found[name].square().sum()), rel=0.01)
    if privacy == "dp_sgd":
        assert one_round(run, 2)["failed"] == {}  # the hooks are on again


def test_the_loss_of_the_start_is_told():
    begun = start("data.public=12", "privacy=none", "start=public", "start.steps=2")
    before, after = begun.started
    told = f"on the public texts, with their labels: loss {before:.4f} to {after:.4f}"
    assert any(told in line for line in header(describe_start(begun)))
    assert not any("loss" in line for line in header(describe_start(start("privacy=none"))))


def test_the_loss_of_the_start_is_in_the_summary(tmp_path):
    chosen = [*make_inputs(tmp_path), "privacy=none", "data.public=8", "rounds=1"]
    found = run_whole(tmp_path / "a", [*chosen, "start=public", "start.steps=5"])
    before, after = found["start_losses"]
    assert after < before
    assert "loss" not in found["start"]  # the same phrase for all seeds
    assert "start_losses" not in run_whole(tmp_path / "b", chosen)


def test_a_start_on_public_texts_moves_what_is_sent_and_nothing_else():
    chosen = ["data.public=12", "privacy=none", "training.precision=fp32"]
    plain = start(*chosen, "strategy=fedavg")
    loss = WorkerView(plain.worker).gradients(plain.state)[0]
    for strategy, moved in (("fedavg", {"A", "B", "extra"}), ("ffa", {"B", "extra"})):
        begun = start(*chosen, f"strategy={strategy}", "start=public", "start.steps=5")
        before, after = plain.state.tensors(), begun.state.tensors()
        assert {kind_of(n) for n in after if not torch.equal(before[n], after[n])} == moved
        view = WorkerView(begun.worker)
        assert view.gradients(begun.state)[0] < loss - 0.01
        assert begun.started == (loss, view.gradients(begun.state)[0])
        assert one_round(begun, 1)["failed"] == {}
    # Adam's first step is lr against the gradient's sign, in A too, which FFA's clients do not train.
    one = start(*chosen, "strategy=fedsvd", "start=public", "start.steps=1", "start.lr=0.01")
    name = next(n for n in one.state.tensors() if n.endswith(".B"))
    found = WorkerView(plain.worker).gradients(plain.state, ("A", "B"))[1]
    assert {kind_of(n) for n in found} == {"A", "B"}
    G = found[name]
    torch.testing.assert_close(
        one.state.tensors()[name], -0.01 * G / (G.abs() + 1e-8), atol=1e-4, rtol=0
    )
    assert not any(p.requires_grad for n, p in one.worker.model.named_parameters() if "lora_A" in n)


@pytest.mark.parametrize("adapter", ["lora_xs", "kronecker", "sorsa"])
def test_a_start_moves_what_trains_of_adapters_without_plain_factors(adapter):
    chosen = ["data.public=12", "privacy=none", "strategy=fedavg", f"adapter={adapter}"]
    run = start(*chosen, "start=public", "start.steps=2")
    moved = [
        n
        for n, t in run.worker.initial.tensors().items()
        if not torch.equal(t, run.state.tensors()[n])
    ]
    assert set(moved) == set(run.worker.model.trainable())


def test_a_start_that_has_nothing_to_train_is_refused():
    settings = compose_settings(
        *[o for o in TINY if not o.startswith("partition.")], "start=public", "data.public=12",
        "partition=own", "data.labels=[a,b]", "data.public_size=40", "privacy.secure_noise=true",
        "privacy.diagnostics=false",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"start\.name: 'public' .* none with partition=own"):
        check_start(settings, build_strategy(settings.strategy))
    with pytest.raises(InputError, match=r"data\.public: 0 is not allowed.*start=public"):
        start("start=public", "data.public=0")
    with pytest.raises(InputError, match=r"start: with .* choose start=none"):
        start(
            "start=public", "data.public=12", "strategy=fedsa", "strategy.head=own",
            "adapter=none", "privacy=none",
        )  # fmt: skip


def test_weight_gradients_are_those_that_train_B():
    # dL/dB = alpha / r (dL/dW) A^T, and dL/dB comes from autograd through the adapter itself. A
    # folded update W is part of the weight.
    run = start("data.public=12", "privacy=none", "strategy=fedavg", "training.precision=fp32")
    one_round(run, 1)
    name, pair = next(iter(run.state.factors.items()))
    G = torch.Generator().manual_seed(0)
    folded = {name: 0.02 * torch.randn(len(pair.B), pair.A.shape[1], generator=G)}
    view = WorkerView(run.worker)
    for state in (run.state, replace(run.state, base=folded)):
        trained, found = view.gradients(state)[1], view.weight_gradients(state)
        assert set(found) == set(state.factors)
        for layer, pair in state.factors.items():
            expected = found[layer].float() @ pair.A.mT  # alpha = r
            torch.testing.assert_close(trained[f"{layer}.B"], expected, rtol=1e-3, atol=1e-6)


def test_strategies_that_look_at_public_texts_run():
    run = start("strategy=scaled", "data.public=12", "privacy.epsilon=50", "strategy.steps=1")
    before = run.strategy.public.gradients(run.state)[0]
    assert one_round(run, 1)["failed"] == {}
    assert run.strategy.public.gradients(run.state)[0] != before
    for directions in ("inputs", "trailing", "gradients"):
        run = start(
            "strategy=fedsvd_refresh", f"strategy.directions={directions}", "data.public=12",
            "strategy.keep=2", "privacy=none",
        )  # fmt: skip
        assert one_round(run, 1)["failed"] == {}
        name, pair = next(iter(run.state.factors.items()))
        torch.testing.assert_close(pair.A @ pair.A.mT, torch.eye(8), atol=1e-5, rtol=0)
        if directions == "gradients":  # at the model of this round, beyond the two rows kept
            G = run.strategy.public.weight_gradients(run.state)[name].float()
            left = G - G @ pair.A[:2].mT @ pair.A[:2]
            best = torch.linalg.svdvals(left)[:6].square().sum()
            assert (left @ pair.A[2:].mT).square().sum() > 0.8 * best
        if directions == "inputs":
            moment = run.strategy.public.moment(name).float()
            assert (
                torch.trace(pair.A[2:] @ moment @ pair.A[2:].mT) > 5 * 6 / 384 * moment.trace()
            )  # of random rows: 6 / 384


def test_no_public_examples_is_an_error_before_work():
    refresh = "strategy=fedsvd_refresh"
    for name in (
        "strategy=scaled",
        [refresh, "strategy.directions=inputs"],
        [refresh, "strategy.directions=gradients"],
    ):
        with pytest.raises(InputError, match=r"data\.public: 0 is not allowed"):
            start(*([name] if isinstance(name, str) else name))
    with pytest.raises(
        InputError, match=r"data\.public: 6824 is not allowed; it must be below 6824"
    ):
        start("data.public=6824")


class Peeks(Initialiser):
    """An initialiser of a user's own that looks at texts if it is told to."""

    def __init__(self, looks: bool = True) -> None:
        self.needs_inputs = looks  # type: ignore[misc]

    def factors(self, site):
        """Return zeros."""
        assert (site.inputs is not None) == self.needs_inputs
        W = site.weight
        return LowRank(W.new_zeros(site.rank, W.shape[1]), W.new_zeros(W.shape[0], site.rank))


PEEKS = ["adapter=lora", f"adapter._target_={__name__}.Peeks"]


@pytest.mark.parametrize("privacy", ["dp_sgd", "client_level"])
@pytest.mark.parametrize(
    "adapter", [["adapter=eva"], ["adapter=eora"], PEEKS], ids=["eva", "eora", "own"]
)
def test_adapters_that_look_at_texts_need_public_ones_under_privacy(privacy, adapter, monkeypatch):
    monkeypatch.setattr(worker, "deal", lambda _: pytest.fail("data were read"))
    with pytest.raises(InputError, match=r"data\.public: 0 is not allowed.*which looks at"):
        start(*adapter, f"privacy={privacy}", "strategy=fedavg")


def test_what_an_adapter_looks_at_under_privacy_are_the_public_texts_alone(monkeypatch):
    seen = []

    def measure(backbone, names, batches):
        seen.extend(int(ids.sum()) for batch in batches for ids in batch["input_ids"])
        raise InputError("seen enough")

    monkeypatch.setattr(calibration, "measure", measure)
    settings = compose_settings(*TINY, *PEEKS, "data.public=12", "strategy=fedavg")
    with pytest.raises(InputError, match="seen enough"):
        worker.build_worker(settings)
    task, _ = worker.deal(settings)
    table = tokenise(
        load_tokenizer(settings.model), task.texts, task.labels, settings.model.max_length
    )
    assert sorted(seen) == sorted(int(table.columns["input_ids"][i].sum()) for i in task.public)
    assert 0 < len(seen) < 40


def test_an_adapter_that_looks_at_none_needs_none():
    start(*PEEKS, "+adapter.looks=false", "strategy=fedavg")


@pytest.mark.parametrize("adapter", ["lora_sb", "lora_xs"])
def test_fedsb_averages_r_and_sends_nothing_else(adapter):
    run = start("strategy=fedsb", f"adapter={adapter}", "privacy=none")
    metrics = one_round(run, 1)
    assert metrics["failed"] == {}
    R, head = 12 * 8 * 8 * 4, 2 * 384 * 4
    assert 0 <= metrics["bytes_up"] - 3 * (R + head) < 3 * 15 * 160
    moved = [
        n for n, t in run.state.extra.items() if not torch.equal(t, run.worker.initial.extra[n])
    ]
    assert sum(n.endswith(".R") for n in moved) == 12
