"""Every class of Flower's strategies does here what it says, or is refused with the reason."""

import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
from unittest.mock import patch

import flwr.serverapp.strategy as stock
import numpy as np
import pytest
import torch
from flwr.app import MetricRecord

from fedsvd import records
from fedsvd.client.rule import LocalRule
from fedsvd.client.training import learning_rate, train_locally
from fedsvd.client.worker import get_worker
from fedsvd.composing import config_folder
from fedsvd.errors import ClientsFailed, InputError
from fedsvd.experiment import prepare
from fedsvd.listing import listing
from fedsvd.privacy.dpsgd import poisson_sample
from fedsvd.randomness import Purpose, numpy_stream
from fedsvd.rounds.attempt import one_round
from fedsvd.settings import StrategySettings
from fedsvd.settings.flower import FIXED, PACKAGE, STOCK, usable
from fedsvd.strategies.build import build_strategy
from fedsvd.strategies.stock import notes
from fedsvd.strategies.use import check_use
from tests.conftest import compose_settings
from tests.tiny import make_inputs

NEEDS = {"QFedAvg": ["+strategy.client_learning_rate=0.8"]}
LOCAL = ["training.local_steps=2", "rounds=2"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return [*make_inputs(tmp_path_factory.mktemp("inputs")), *LOCAL]


def classes():
    """Every class of Flower's package that is a strategy, exported or not."""
    found = {}
    for module in pkgutil.walk_packages(stock.__path__, f"{PACKAGE}."):
        for value in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(value) and issubclass(value, stock.Strategy):
                found[value.__name__] = value
    return found


def chosen(inputs, name, *more):
    found = classes()[name]
    target = f"strategy._target_={found.__module__}.{name}"
    return compose_settings(*inputs, target, *NEEDS.get(name, []), *more)


def digest(inputs, name, *more):
    settings = chosen(inputs, name, *more)
    strategy = build_strategy(settings.strategy)
    check_use(settings, strategy)
    run = prepare(settings, strategy)
    for number in (1, 2):
        metrics = one_round(run, number)
        assert metrics["failed"] == {}
        assert "not_aggregated" not in metrics
    return run.state.digest()


def test_the_table_holds_every_class_of_flowers_package():
    assert set(STOCK) == set(classes())
    assert set(stock.__all__) - {"Result"} <= set(STOCK)


@pytest.mark.parametrize("name", list(STOCK))
def test_every_class_works_or_is_refused_in_one_line(name, inputs):
    if not STOCK[name].refused:
        enough = ["strategy.num_malicious_nodes=0"] if name == "Bulyan" else []
        enough = [f"+{e}" for e in enough]
        assert digest(inputs, name, "privacy=none", *enough)
        return
    with pytest.raises(InputError) as caught:
        build_strategy(chosen(inputs, name).strategy)
    told = str(caught.value)
    assert "\n" not in told
    assert STOCK[name].refused in told or "lacks the method" in told  # that of an abstract class


@pytest.mark.parametrize("name", [name for name in STOCK if not STOCK[name].refused])
def test_a_rule_gets_replies_by_client_in_whatever_order_they_came(name, inputs):
    """Flower's rules sum, and break ties, in the order in which they are handed replies."""
    enough = ["+strategy.num_malicious_nodes=0"] if name == "Bulyan" else []
    settings = chosen(
        inputs, name, "privacy=none", "clients.number=8", "clients.per_round=8", *enough
    )
    found, handed = [], []
    for turned in (lambda r: r, lambda r: r[::-1], lambda r: [*r[3:], *r[:3]]):
        strategy = build_strategy(settings.strategy)
        run = prepare(settings, strategy)
        real, rule = run.grid.send_and_receive, strategy.aggregate_train

        def arrive(messages, real=real, turned=turned):
            return turned(list(real(messages)))

        def listen(number, replies, rule=rule):
            replies = list(replies)
            handed.append([r.metadata.src_node_id for r in replies])
            return rule(number, replies)

        with (
            patch.object(run.grid, "send_and_receive", arrive),
            patch.object(strategy, "aggregate_train", listen),
        ):
            one_round(run, 1)
        found.append(run.state.digest())
    assert handed == [list(range(8))] * 3
    assert len({*found}) == 1


def test_a_class_that_a_new_version_adds_is_refused_until_decided():
    settings = StrategySettings(f"{PACKAGE}.FedProx", {})
    with patch.dict(STOCK):
        del STOCK["FedProx"]
        with pytest.raises(InputError, match="FedProx is not known to this version of fedsvd"):
            build_strategy(settings)
    build_strategy(settings)


@pytest.mark.parametrize("privacy", ["none", "dp_sgd", "client_level"])
def test_the_proximal_term_is_no_decoration(privacy, inputs):
    """Of FedProx with mu = 0 FedAvg's bits, and others with every other mu."""
    more = f"privacy={privacy}"
    plain = digest(inputs, "FedAvg", more)
    found = [digest(inputs, "FedProx", more, f"+strategy.proximal_mu={mu}") for mu in (0, 0.5, 100)]
    assert found[0] == plain
    assert len({*found}) == 3


@pytest.mark.parametrize("factors", ["B", "AB"])
def test_fedprox_trains_as_a_plain_loop_does(factors, inputs):
    """Gradient steps on loss + mu / 2 ||w - w_t||^2 by autograd, with the same batches."""
    settings = compose_settings(
        *inputs, "privacy=none", "training.local_steps=4", "training.clip_norm=null",
        f"training.factors={factors}",
    )  # fmt: skip
    worker, mu, client, round = get_worker(settings), 0.7, 1, 1
    start = worker.initial
    found = train_locally(worker, start, client, round, rule=LocalRule(proximal_mu=mu)).state

    worker.model.write(start)
    named, plan = worker.model.trainable(), worker.plan.clients[client]
    w_t = {n: p.detach().clone() for n, p in named.items()}
    sampler = numpy_stream(settings.seed, Purpose.SAMPLING, round, client)
    rows = worker.parts[client]
    for _ in range(4):
        drawn = [int(rows[i]) for i in poisson_sample(len(rows), plan.sample_rate, sampler)]
        away = sum(((p - w_t[n]) ** 2).sum() for n, p in named.items())
        loss = mu / 2 * away
        if drawn:
            loss = loss + worker.losses(drawn).sum() / plan.expected_batch
        gradients = torch.autograd.grad(loss, list(named.values()))
        with torch.no_grad():
            for p, g in zip(named.values(), gradients, strict=True):
                p -= settings.training.lr * g
    for n, p in named.items():
        torch.testing.assert_close(found.tensors()[n], p.detach(), rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(p, w_t[n]) for n, p in named.items())


@pytest.mark.parametrize("mu", [0.5, 1000.0])
def test_under_privacy_the_proximal_term_is_added_after_clip_and_noise(mu, inputs):
    """Two steps with the same noise differ by lr mu (w_1 - w_t) exactly, however large it is."""
    settings = compose_settings(*inputs, "privacy=dp_sgd")
    worker, client, round = get_worker(settings), 0, 1
    start = worker.initial

    def trained(steps, rule):
        one = compose_settings(*inputs, "privacy=dp_sgd", f"training.local_steps={steps}")
        with patch.object(worker, "settings", one):
            return train_locally(worker, start, client, round, rule=rule).state.tensors()

    first, plain = trained(1, LocalRule()), trained(2, LocalRule())
    proximal, lr = trained(2, LocalRule(proximal_mu=mu)), learning_rate(settings.training, 1, 2)
    for name in worker.model.trainable():
        moved = lr * mu * (first[name] - start.tensors()[name])
        torch.testing.assert_close(proximal[name], plain[name] - moved, rtol=1e-4, atol=1e-4)
    assert lr * mu * max(float((first[n] - start.tensors()[n]).norm()) for n in first) > 0.1


def test_qfedavg_weighs_clients_by_their_losses(inputs):
    """Algorithm 2 of Li et al. (ICLR 2020) in float64, with losses by a loop of our own."""
    q = 2.0
    settings = chosen(inputs, "QFedAvg", "privacy=none", f"+strategy.q={q}")
    run = prepare(settings, build_strategy(settings.strategy))
    worker, old, replies, real = run.worker, run.state.tensors(), [], run.grid.send_and_receive

    def listen(messages):
        replies.extend(real(messages))
        return replies

    with patch.object(run.grid, "send_and_receive", listen):
        one_round(run, 1)
    assert len(replies) == 3
    L, sums, h = 1 / settings.training.lr, {}, 0.0
    for reply in replies:
        rows = worker.parts[reply.metadata.src_node_id].tolist()
        worker.model.write(worker.initial)
        with torch.no_grad():
            loss = np.mean([float(worker.losses([row])) for row in rows])
        told = records.metrics_of(reply)[records.LOSS]
        np.testing.assert_allclose(told, loss, rtol=1e-5)
        sent = records.from_record(records.arrays_of(reply))
        moved = {n: L * (old[n].double() - x.double()) for n, x in sent.items()}
        for n, d in moved.items():
            sums[n] = sums.get(n, 0) + loss**q * d
        size = sum(float((d**2).sum()) for d in moved.values())
        h += q * loss ** (q - 1) * size + L * loss**q
    for name, total in sums.items():
        expected = old[name].double() - total / h
        torch.testing.assert_close(
            run.state.tensors()[name].double(), expected, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("privacy", ["dp_sgd", "client_level"])
@pytest.mark.parametrize("diagnostics", [True, False])
def test_losses_are_not_given_to_a_strategy_under_privacy(privacy, diagnostics, inputs):
    more = [f"privacy={privacy}", f"privacy.diagnostics={str(diagnostics).lower()}"]
    settings = chosen(inputs, "QFedAvg", *more)
    with pytest.raises(InputError, match=r"QFedAvg is given every client's loss .* would not hold"):
        check_use(settings, build_strategy(settings.strategy))


def test_a_client_does_not_send_its_loss_under_privacy_whoever_asks(inputs):
    settings = compose_settings(*inputs, "strategy=median")
    run = prepare(settings, build_strategy(settings.strategy))
    asked = patch("fedsvd.rounds.attempt._metrics", return_value=(records.WEIGHT, records.LOSS))
    with asked, pytest.raises(ClientsFailed, match=r"all 3 clients .* outside the guarantee"):
        one_round(run, 1)


def test_a_client_with_other_metrics_is_left_out(inputs):
    """Flower's rules raise for them, and one client would end the run."""
    settings = compose_settings(*inputs, "strategy=median", "privacy=none")
    run = prepare(settings, build_strategy(settings.strategy))
    real = run.grid.send_and_receive

    def more(messages):
        replies = list(real(messages))
        replies[0].content[records.METRICS] = MetricRecord({records.WEIGHT: 1.0, "shoe size": 43})
        replies[1].content["more"] = MetricRecord({records.WEIGHT: 1.0})
        return replies

    with patch.object(run.grid, "send_and_receive", more):
        metrics = one_round(run, 1)
    assert list(metrics["failed"].values()) == ["sent other metrics than num-examples"] * 2


WRONG = [
    ("FedProx", "+strategy.proximal_mu=-1", "strategy.proximal_mu: -1"),
    ("FedProx", "+strategy.proximal_mu=nan", "strategy.proximal_mu: nan"),
    ("FedProx", "+strategy.proximal_mu=inf", "strategy.proximal_mu: inf"),
    ("FedProx", "+strategy.proximal_mu=much", "strategy.proximal_mu: 'much'"),
    ("FedProx", "+strategy.proximal_mu=true", "strategy.proximal_mu: True"),
    ("FedProx", "+strategy.proximal_mu=null", "strategy.proximal_mu: None"),
    ("FedAvg", "+strategy.weighted_by_key=loss", "strategy.weighted_by_key: 'loss'"),
    ("FedAvg", "+strategy.arrayrecord_key=w", "strategy.arrayrecord_key: 'w'"),
    ("FedAvg", "+strategy.configrecord_key=w", "strategy.configrecord_key: 'w'"),
    ("FedAvg", "+strategy.fraction_train=0", "strategy.fraction_train: 0 "),
    ("FedAvg", "+strategy.fraction_train=0.5", "clients.per_round and clients.participation draw"),
    ("FedAvg", "+strategy.fraction_evaluate=1", "the server evaluates: recorder.evaluate_every"),
    ("FedAvg", "+strategy.min_train_nodes=4", "would wait for ever"),
    ("FedAvg", "+strategy.min_available_nodes=9", "would wait for ever"),
    ("FedAvg", "+strategy.train_metrics_aggr_fn=max", "must be null here"),
    ("QFedAvg", "+strategy.train_loss_key=loss", "strategy.train_loss_key: 'loss'"),
    ("QFedAvg", "+strategy.q=-1", "strategy.q: -1"),
    ("QFedAvg", "strategy.client_learning_rate=0.1", "it must be training.lr = 0.8"),
    ("FedAdam", "+strategy.eta_l=0.1", "strategy.eta_l: 0.1 is not allowed; it must be training.lr"),
    ("FedAdam", "+strategy.eta=0", "strategy.eta: 0"),
    ("FedYogi", "+strategy.beta_2=1", "strategy.beta_2: 1 is not allowed; it must be in [0, 1)"),
    ("FedAdagrad", "+strategy.tau=-1", "strategy.tau: -1"),
    ("FedAvgM", "+strategy.server_momentum=-0.5", "strategy.server_momentum: -0.5"),
    ("FedAvgM", "+strategy.server_learning_rate=fast", "strategy.server_learning_rate: 'fast'"),
    ("FedTrimmedAvg", "+strategy.beta=0.5", "beta"),
    ("Krum", "+strategy.num_malicious_nodes=1.5", "strategy.num_malicious_nodes: 1.5"),
    ("Krum", "+strategy.num_malicious_nodes=3", "it must be below clients.per_round = 3"),
    ("MultiKrum", "+strategy.num_nodes_to_select=0", "strategy.num_nodes_to_select: 0"),
    ("MultiKrum", "+strategy.num_nodes_to_select=4", "at most clients.per_round = 3"),
    ("Bulyan", "+strategy.selection_rule=mine", "strategy.selection_rule: 'mine'"),
    ("Bulyan", "+strategy.num_malicious_nodes=1", "at least 4 f + 3 = 7 with Bulyan"),
    ("Krum", "privacy=client_level", "Krum chooses among clients"),
    ("FedMedian", "privacy=client_level", "FedMedian chooses among clients"),
    ("FedTrimmedAvg", "privacy=client_level", "FedTrimmedAvg chooses among clients"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "more", "message"), WRONG, ids=lambda v: str(v)[:40])
def test_options_that_would_be_ignored_or_fail_later_are_refused(name, more, message, inputs):
    private = more if more.startswith("privacy") else "privacy=none"
    settings = chosen(inputs, name, private, *([] if more == private else [more]))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        check_use(settings, build_strategy(settings.strategy))
    assert "\n" not in str(caught.value)


def test_a_missing_option_is_named():
    with pytest.raises(InputError, match=r"strategy\.client_learning_rate: is missing"):
        build_strategy(StrategySettings(f"{PACKAGE}.QFedAvg", {}))


@pytest.fixture
def lab(tmp_path, monkeypatch):
    (tmp_path / "my_flowers.py").write_text(
        textwrap.dedent(
            """
            from flwr.serverapp.strategy import FedAvg, FedXgbBagging, QFedAvg, Strategy
            from flwr.serverapp.strategy.fedopt import FedOpt
            class Trees(FedXgbBagging): pass
            class Fair(QFedAvg): pass
            class Half(FedAvg):
                def __init__(self): super().__init__(fraction_train=0.5)
            class Names(FedAvg):
                def __init__(self):
                    super().__init__(min_train_nodes=1, min_available_nodes=1, weighted_by_key="n")
            class Draws(FedAvg):
                def __init__(self): super().__init__(fraction_train=0.5)
                def configure_train(self, server_round, arrays, config, grid):
                    return super().configure_train(server_round, arrays, config, grid)
            class Opt(FedOpt): pass
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_flowers", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Trees", r"_target_: my_flowers\.Trees aggregates trees"),
        ("Fair", "Fair is given every client's loss"),
        ("Half", r"strategy\.fraction_train: 0\.5"),
        ("Names", r"strategy\.weighted_by_key: 'n'"),
        ("Draws", None),
        ("Opt", None),
    ],
)
def test_a_class_derived_from_flowers_is_what_it_derives_from(name, message, lab, settings):
    options = {"client_learning_rate": 0.8} if name == "Fair" else {}
    found = settings(f"strategy._target_=my_flowers.{name}")
    if message is None:
        check_use(found, build_strategy(StrategySettings(found.strategy.target, options)))
        return
    with pytest.raises(InputError, match=message):
        check_use(found, build_strategy(StrategySettings(found.strategy.target, options)))


def test_what_a_rule_does_less_than_its_name_says_is_told(inputs):
    def told(name, *more):
        settings = chosen(inputs, name, *more)
        return " ".join(notes(settings, build_strategy(settings.strategy)))

    assert "FedProx is FedAvg" in told("FedProx")
    assert told("FedProx", "+strategy.proximal_mu=1") == ""
    once = told("FedProx", "+strategy.proximal_mu=1", "training.local_steps=1")
    assert "zero in a round's first step" in once
    assert "cuts nothing off" in told("FedTrimmedAvg")
    assert told("FedTrimmedAvg", "+strategy.beta=0.4") == ""
    assert "2 f + 3 = 5 clients" in told("Krum", "+strategy.num_malicious_nodes=1")
    assert told("Krum") == told("FedAvg") == ""


def test_the_readme_the_page_and_the_list_say_what_the_table_says():
    root = config_folder().parent
    page = (root / "docs" / "strategies" / "flower.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|$", page, re.MULTILINE))
    assert rows == {n: s.does or f"refused: {s.refused}" for n, s in STOCK.items()}
    fixed = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", page, re.MULTILINE))
    assert fixed == {n: "null" if v is None else str(v) for n, (v, _) in FIXED.items()}
    readme = " ".join((root / "README.md").read_text().split())
    (named,) = re.findall(r"`strategy\._target_` takes Flower's (`[^.]*`)\.", readme)
    assert re.findall(r"`(\w+)`", named) == usable()
    lines = listing(config_folder()).splitlines()
    for name, one in STOCK.items():
        said = one.does or one.refused
        told = next(x for x in lines if re.search(rf"\b{name}\b", x) and said in x)
        assert told.startswith("  ")
