"""Which adapter goes with which strategy: refused before work, with what can; and the listing."""

from dataclasses import replace

import pytest
import torch

from fedsvd import run
from fedsvd.adapters.build import build_adapter
from fedsvd.errors import InputError
from fedsvd.settings import AdapterSettings
from fedsvd.settings.model import ADAPTERS
from fedsvd.strategies import FFA, FedAvg, FedSVD, FedSvdRefresh, RoLora
from fedsvd.strategies.base import Strategy, Update
from fedsvd.strategies.build import build_strategy
from fedsvd.strategies.pairs import check_pair, configured, refusal
from fedsvd.strategies.stock import notes
from fedsvd.testing import make_state
from tests.conftest import compose_settings


def verdict(strategy, adapter, **options):
    return refusal(strategy, build_adapter(AdapterSettings(adapter, options=options)))


def test_factors_are_needed_by_what_works_on_them():
    for name in ("svfit", "sorsa", "effort", "lora_xs", "kronecker", "cayley"):
        assert "works on A and B" in verdict(FedSVD(), name)
        assert verdict(FFA(), name) is not None
        assert verdict(FedAvg(), name) is None
    for name in ("lora", "pissa", "dora", "eva", "eora"):
        assert verdict(FedSVD(), name) is None


def test_what_drops_part_of_the_product_is_not_for_pretrained_parts():
    assert "keeps part of the pretrained weight" in verdict(FedSvdRefresh(), "pissa")
    assert verdict(FedSvdRefresh(tail="fold"), "pissa") is None
    assert verdict(FedSvdRefresh(), "dct") is None


def test_layers_that_hold_one_a_do_not_train_it():
    for rule in (FedAvg(), RoLora()):
        assert "holds one A for a group of layers" in verdict(rule, "xkv")
    assert verdict(FedSVD(), "xkv") is None
    with pytest.raises(InputError, match=r"training\.factors: 'AB' is not allowed.*holds one A"):
        check("adapter=xkv", "strategy=ffa", "training.factors=AB")


def test_fedsb_without_its_start_is_told():
    for adapter, told in (("lora_xs", 1), ("lora_sb", 0)):
        settings = compose_settings("strategy=fedsb", f"adapter={adapter}")
        found = notes(settings, build_strategy(settings.strategy))
        assert [line for line in found if "averaged LoRA-XS" in line] == found
        assert len(found) == told


def check(*overrides):
    settings = compose_settings(*overrides)
    check_pair(settings, build_strategy(settings.strategy), run.config_folder())


def test_a_pair_is_refused_with_the_reason_and_what_can():
    with pytest.raises(InputError) as found:
        check("adapter=svfit")
    told = str(found.value)
    assert "svfit does not go with strategy fedsvd.strategies.FedSVD" in told
    assert "FedSVD works on A and B, and SVFit trains sigma" in told
    assert "strategies that can: " in told
    able = told.partition("strategies that can: ")[2]
    assert "fedavg" in able
    assert "ffa" not in able
    check("adapter=svfit", "strategy=fedavg")
    check("adapter=none")
    check("adapter=svfit", "strategy._target_=flwr.serverapp.strategy.FedMedian")


OURS = [
    name
    for name, rule in configured(run.config_folder())
    if isinstance(rule, Strategy) and name != "scaled"  # which asks for public texts
]


@pytest.mark.parametrize("name", OURS)
def test_every_strategy_averages_a_head_alone(name):
    rule = dict(configured(run.config_folder()))[name]
    state = replace(make_state(), factors={})
    updates = [
        Update(k, 1 / 3, state.update({n: t + k for n, t in state.extra.items()})) for k in range(3)
    ]
    new = rule.aggregate(state, updates)
    assert new.factors == {}
    for key, old in state.extra.items():
        change = new.extra[key] - old
        assert bool((change > 0).all()), key
        if "adam" not in name and "yogi" not in name:
            torch.testing.assert_close(change, torch.ones_like(old))


def test_clients_ranks_need_factors_of_nothing_but_the_update():
    with pytest.raises(InputError, match=r"clients\.ranks: pissa cannot be cut"):
        check("adapter=pissa", "strategy=flexlora", "clients.ranks=[2,4,8,8,8,8]")
    check("strategy=flexlora", "clients.ranks=[2,4,8,8,8,8]")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["adapter.init=pizza"], "adapter.init: 'pizza' is not allowed (did you mean 'pissa'?)"),
        (["+adapter.gama=1"], "adapter.gama: 'gama' is not allowed"),
        (["adapter=lora_xs", "adapter.start=svt"], "adapter.start: 'svt' is not allowed (did you"),
        (["adapter._target_=nowhere.Mine"], "adapter._target_: 'nowhere.Mine' cannot be imported"),
        (["adapter._target_=fedsvd.adapters.Pisa"], "did you mean fedsvd.adapters.Pissa?"),
        (["adapter._target_=fedsvd.strategies.FFA"], "is not an adapter; derive it from"),
        (["adapter._target_=fedsvd.adapters.Initialiser"], "lacks the method factors"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_adapter_is_told_before_work(overrides, sentence):
    with pytest.raises(InputError) as found:
        check(*overrides)
    assert sentence in str(found.value)


def test_list_prints_all_that_can_be_chosen(capsys):
    assert run.main(["--list"]) == 0
    told = capsys.readouterr()
    out = told.out
    assert "fraction_evaluate" not in told.out + told.err  # no advice of Flower's in between
    for group in ("strategy", "adapter", "data", "model"):
        for path in (run.config_folder() / group).glob("*.yaml"):
            assert f"\n  {path.stem} " in out or f"\n  {path.stem}\n" in out
            first, second, *_ = path.read_text().splitlines()
            # What is listed is a whole sentence, not the first half of one.
            assert first.endswith(".") or not second.startswith("#"), path
    lines = out.splitlines()
    letters = {line.split()[1]: line.split()[0] for line in lines if len(line.split()) == 2}
    header = next(line.split() for line in lines if line.split()[:2] == ["a", "b"])
    table = lines[lines.index(next(x for x in lines if x.split()[:2] == ["a", "b"])) :]
    rows = {line.split()[0]: line.split()[1:] for line in table[1:]}
    for strategy, built in configured(run.config_folder()):
        for adapter in ADAPTERS:
            cell = rows[strategy][header.index(letters[adapter])]
            assert (cell == "x") is (verdict(built, adapter) is None), (strategy, adapter)
