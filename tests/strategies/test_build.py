import sys
import textwrap

import flwr.serverapp.strategy as stock
import pytest

from fedsvd.errors import InputError
from fedsvd.run import config_folder
from fedsvd.settings import StrategySettings
from fedsvd.strategies import FedSVD
from fedsvd.strategies.build import build_strategy
from fedsvd.strategies.use import check_use


@pytest.fixture
def lab(tmp_path, monkeypatch):
    def write(text):
        (tmp_path / "my_lab.py").write_text(textwrap.dedent(text))
        monkeypatch.syspath_prepend(str(tmp_path))
        sys.modules.pop("my_lab", None)

    return write


def test_ours_takes_its_options():
    assert build_strategy(StrategySettings("fedsvd.strategies.FedSVD", {"period": 3})).period == 3


def test_a_group_option_that_another_class_lacks_is_left_out_unless_the_user_gave_it():
    settings = StrategySettings("fedsvd.strategies.FFA", {"period": 1})
    build_strategy(settings)
    with pytest.raises(InputError, match=r"strategy\.period"):
        build_strategy(settings, given=["period"])


def test_stock_strategies_take_every_node_and_do_not_wait():
    built = build_strategy(StrategySettings("flwr.serverapp.strategy.FedTrimmedAvg", {"beta": 0.1}))
    assert isinstance(built, stock.FedTrimmedAvg)
    assert (built.fraction_train, built.min_available_nodes, built.beta) == (1.0, 1, 0.1)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_module.Thing", "cannot be imported"),
        ("fedsvd.strategies.FedSDV", "did you mean fedsvd.strategies.FedSVD"),
        ("fedsvd.lowrank.LowRank", "is not a strategy"),
        ("fedsvd.strategies.Strategy", "lacks the method aggregate"),
        ("my_lab.Lazy", "lacks the method aggregate"),
        ("my_lab.Plain", "is not a strategy"),
    ],
)
def test_unusable_targets_are_named(lab, target, message):
    lab(
        """
        from fedsvd.strategies import Strategy
        class Lazy(Strategy): pass
        class Plain: pass
        """
    )
    with pytest.raises(InputError, match=message):
        build_strategy(StrategySettings(target))


def test_a_module_that_fails_to_import_is_told_as_such(lab):
    lab("raise RuntimeError('half written')")
    with pytest.raises(InputError, match="half written"):
        build_strategy(StrategySettings("my_lab.Mine"))


def test_own_strategy(lab):
    lab(
        """
        from fedsvd.lowrank import average
        from fedsvd.strategies import Strategy
        class Mine(Strategy):
            def aggregate(self, state, updates):
                return average([u.state for u in updates], [1.0] * len(updates), into=state)
        """
    )
    built = build_strategy(StrategySettings("my_lab.Mine", {"period": 1}))
    assert not isinstance(built, FedSVD)
    assert built.trains == ("B",)


def test_what_is_not_post_processing_is_refused_under_privacy(lab, settings):
    lab(
        """
        from fedsvd.strategies import Strategy, weighted_mean
        class Peeks(Strategy):
            post_processing = False
            def aggregate(self, state, updates):
                return weighted_mean(state, updates)
        """
    )
    target = "strategy._target_=my_lab.Peeks"
    for privacy in ("dp_sgd", "client_level"):
        with pytest.raises(InputError, match=r"strategy: the server step of my_lab\.Peeks uses"):
            check_use(settings(target, f"privacy={privacy}"))
    check_use(settings(target, "privacy=none"))
    check_use(settings("strategy=fedavg"))


def test_what_an_option_makes_no_post_processing_is_refused_too(lab, settings):
    lab(
        """
        from fedsvd.strategies import Strategy, weighted_mean
        class Sometimes(Strategy):
            def __init__(self, peek=False):
                self.post_processing = not peek
            def aggregate(self, state, updates):
                return weighted_mean(state, updates)
        """
    )
    chosen = settings("strategy._target_=my_lab.Sometimes", "+strategy.peek=true")
    with pytest.raises(InputError, match=r"my_lab\.Sometimes uses more than what clients released"):
        check_use(chosen, build_strategy(chosen.strategy))
    chosen = settings("strategy._target_=my_lab.Sometimes")
    check_use(chosen, build_strategy(chosen.strategy))


def test_one_of_flowers_kind_that_says_it_is_no_post_processing_is_refused_too(lab, settings):
    lab(
        """
        from flwr.serverapp.strategy import FedAvg
        class Peeks(FedAvg):
            post_processing = False
        """
    )
    with pytest.raises(InputError, match=r"my_lab\.Peeks uses more than what clients released"):
        check_use(settings("strategy._target_=my_lab.Peeks"))
    check_use(settings("strategy._target_=my_lab.Peeks", "privacy=none"))
    check_use(settings("strategy=median"))


@pytest.mark.parametrize("factors", ["A", "AB"])
def test_training_what_is_not_sent_back_is_refused(settings, factors):
    with pytest.raises(
        InputError, match=rf"training\.factors: '{factors}' has clients train A, wh"
    ):
        check_use(settings("strategy=ffa", f"training.factors={factors}"))
    check_use(settings("strategy=fedsvd", f"training.factors={factors}"))
    check_use(settings("strategy=fedsa"))  # its B stays with the clients


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"clients\.per_round: 3 is not allowed; it must be at least 4 f \+ 3 = 7 with Bulyan"),
        (["clients.participation=all"], r"clients\.number: 6 is not allowed; it must be at least"),
        (["privacy=client_level"], "Bulyan chooses among clients"),
    ],
)
def test_bulyan_is_refused_where_it_would_aggregate_nothing(settings, overrides, message):
    chosen = settings("strategy=bulyan", *overrides)
    with pytest.raises(InputError, match=message):
        check_use(chosen, build_strategy(chosen.strategy))
    for enough in (
        ["clients.number=9", "clients.per_round=7"],
        ["clients.number=7", "clients.participation=all"],
        ["strategy.num_malicious_nodes=0"],
    ):
        chosen = settings("strategy=bulyan", *enough)
        check_use(chosen, build_strategy(chosen.strategy))


def test_ranks_are_not_pruned_where_one_noised_mean_arrives(settings):
    """The mean would count as client 0's, whose next reply the mechanism could not add up."""
    chosen = settings("strategy=hetlora", "privacy=client_level")
    with pytest.raises(InputError, match=r"HetLora tells clients apart, .* strategy\.gamma=1"):
        check_use(chosen, build_strategy(chosen.strategy))
    for allowed in (["privacy=client_level", "strategy.gamma=1"], ["privacy=dp_sgd"]):
        chosen = settings("strategy=hetlora", *allowed)
        check_use(chosen, build_strategy(chosen.strategy))


def test_a_rule_that_compares_clients_is_refused_where_one_message_arrives(settings):
    for one, message in (
        (
            "privacy=client_level",
            "FedRpca compares the clients of a round, and with privacy.unit=cl",
        ),
        (
            "clients.per_round=1",
            r"clients\.per_round: 1 is not allowed; it must be at least 2 with",
        ),
    ):
        chosen = settings("strategy=fedrpca", one)
        with pytest.raises(InputError, match=message):
            check_use(chosen, build_strategy(chosen.strategy))
        control = settings(
            "strategy=fedavg", "+strategy.server.name=momentum", "+strategy.server.lr=2",
            "+strategy.server.beta1=0", one,
        )  # fmt: skip
        check_use(control, build_strategy(control.strategy))
    chosen = settings("strategy=fedrpca")
    check_use(chosen, build_strategy(chosen.strategy))


@pytest.mark.parametrize("name", ["fedavg", "ffa", "fedsa", "fedsb", "rolora", "la_lora", "fedrot"])
def test_a_server_optimiser_is_an_option_of_all_that_average(settings, name):
    server = ("+strategy.server.name=adam", "+strategy.server.lr=0.1")
    built = build_strategy(settings(f"strategy={name}", *server).strategy)
    assert (built.server.name, built.server.lr) == ("adam", 0.1)
    with pytest.raises(InputError, match=r"strategy\.server\.lr: is missing"):
        build_strategy(settings(f"strategy={name}", server[0]).strategy)


def test_a_server_optimiser_is_refused_where_factors_change_basis(settings):
    for name in ("fedsvd", "flora", "fedex", "fedgsa"):
        chosen = settings(f"strategy={name}", "+strategy.server.name=adam", "+strategy.server.lr=1")
        with pytest.raises(InputError, match=r"does not average factors.* choose fedavg"):
            build_strategy(chosen.strategy)


def test_training_a_is_refused_where_clients_must_hold_one(settings):
    with pytest.raises(InputError, match=r"training\.factors: 'AB' is not allowed"):
        check_use(settings("strategy=geometric_median", "training.factors=AB"))
    check_use(settings("strategy=geometric_median"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["strategy=prism", "privacy=client_level"],
            r"Prism is about the noise in the clients' st",
        ),
        (
            ["strategy=prism", "training.factors=B"],
            r"training\.factors: 'B' is not allowed.* B A i",
        ),
        (["strategy=prism", "training.momentum=0.9"], r"training\.momentum: 0\.9 is not allowed"),
        (
            ["strategy=dp_fedadamw"],
            r"training\.optimizer: 'sgd' is not allowed.* training\.lr for it",
        ),
        (
            ["strategy=dp_fedadamw", "training.optimizer=adamw", "privacy=client_level"],
            r"DpFedAdamW is about the noise",
        ),
    ],
)
def test_steps_that_a_run_cannot_take_are_refused(settings, overrides, said):
    chosen = settings(*overrides)
    with pytest.raises(InputError, match=said):
        check_use(chosen, build_strategy(chosen.strategy))


@pytest.mark.parametrize(
    ("name", "option", "said"),
    [
        ("la_lora", "smoothing=gauss", r"strategy\.smoothing: 'gauss' .* 'binomial', or a number"),
        ("la_lora", "smoothing=-1", r"strategy\.smoothing: -1"),
        ("la_lora", "rate_B=0", r"strategy\.rate_B: 0"),
        ("la_lora", "projected=2", r"strategy\.projected: 2"),
        ("prism", "floor=-1", r"strategy\.floor: -1"),
        ("prism", "beta2=1", r"strategy\.beta2: 1"),
        ("dp_fedadamw", "gamma=-1", r"strategy\.gamma: -1"),
        ("dp_fedadamw", "beta1=1.5", r"strategy\.beta1: 1\.5"),
        ("dp_fedadamw", "tau=0", r"strategy\.tau: 0"),
    ],
)
def test_options_of_clients_steps_are_checked(settings, name, option, said):
    with pytest.raises(InputError, match=said):
        build_strategy(settings(f"strategy={name}", f"strategy.{option}").strategy)


def test_la_loras_gaussian_filter_stays_an_option(settings):
    rule = build_strategy(settings("strategy=la_lora", "strategy.smoothing=1.5").strategy).local
    assert (rule.binomial, rule.smoothing) == (False, 1.5)
    rule = build_strategy(settings("strategy=la_lora").strategy).local
    assert (rule.binomial, rule.smoothing, rule.rate_A, rule.rate_B) == (True, 0.0, 1.0, 2.0)


def test_every_group_builds(settings):
    for path in sorted((config_folder() / "strategy").glob("*.yaml")):
        chosen = settings(f"strategy={path.stem}", "seed=7")
        built = build_strategy(chosen.strategy, list(chosen.strategy.options))
        assert getattr(built, "seed", 7) == 7


PAGES = {
    **dict.fromkeys(("fedadam", "fedavgm", "fedyogi"), "server_optimizers"),
    **dict.fromkeys(("median", "trimmed_mean", "krum", "multi_krum", "bulyan"), "flower"),
}


def test_ranks_of_clients_are_refused_where_one_is_needed(settings):
    ranks = "clients.ranks=[1,2,3,4,5,6]"
    for name in ("fedsvd", "fedavg", "median"):
        with pytest.raises(InputError, match=r"clients\.ranks: .* florist, hetlora, ilora and"):
            check_use(settings(f"strategy={name}", ranks))
    check_use(settings("strategy=flora", ranks))
    for wrong in ("[1,2]", "[0,1,1,1,1,1]", "[9,1,1,1,1,1]"):
        with pytest.raises(InputError, match=r"clients\.ranks"):
            settings("strategy=flora", f"clients.ranks={wrong}")


def test_lora_a2_needs_a_step_to_choose_and_one_to_train(settings):
    for steps, fine in ((1, False), (2, True)):
        chosen = settings("strategy=lora_a2", f"training.local_steps={steps}")
        if fine:
            check_use(chosen, build_strategy(chosen.strategy))
        else:
            with pytest.raises(InputError, match=r"training\.local_steps: .* at least 2"):
                check_use(chosen, build_strategy(chosen.strategy))
    check_use(settings("strategy=lora_a2", "clients.ranks=[1,2,3,4,5,6]"))


def test_every_group_has_its_page():
    docs = config_folder().parent / "docs" / "strategies"
    index = (docs / "README.md").read_text()
    for path in (config_folder() / "strategy").glob("*.yaml"):
        page = PAGES.get(path.stem, path.stem)
        assert (docs / f"{page}.md").is_file(), page
        assert f"({page}.md)" in index


def test_what_a_constructor_keeps_with_the_clients_is_what_is_checked(lab, settings):
    lab(
        """
        from fedsvd.strategies import Strategy, weighted_mean

        class Own(Strategy):
            trains, broadcasts = ("A", "B"), ("A",)

            def __init__(self, own: bool = True) -> None:
                self.keeps = ("B",) if own else ()

            def aggregate(self, state, updates):
                return weighted_mean(state, updates)
        """
    )
    chosen = settings("strategy._target_=my_lab.Own")
    check_use(chosen, build_strategy(chosen.strategy))
    shared = settings("strategy._target_=my_lab.Own", "+strategy.own=false")
    with pytest.raises(
        InputError, match=r"clients train B, which my_lab\.Own averages but does not"
    ):
        check_use(shared, build_strategy(shared.strategy))
    averaged = settings("strategy._target_=my_lab.Own", "averaging=ema")
    with pytest.raises(InputError, match=r"averaging\.name.* keep B of their own"):
        check_use(averaged, build_strategy(averaged.strategy))
