import sys
import textwrap

import flwr.serverapp.strategy as stock
import pytest

from fedsvd.errors import InputError
from fedsvd.settings import StrategySettings
from fedsvd.strategies import FedSVD
from fedsvd.strategies.build import build_strategy


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
