"""Which runs have the second figure, and where it shows."""

import json
from types import SimpleNamespace

import pytest

from fedsvd.privacy.ledger import Ledger
from fedsvd.privacy.plan import make_plan
from fedsvd.rounds.published import ASSUMED, published_figure
from fedsvd.strategies import FedSVD, FlexLora, GeometricMedian, LaLora
from fedsvd.strategies.fedsa import FedSa

SIZES = [300, 200, 100, 250, 150, 200]


def run_of(settings, strategy, *given):
    s = settings("privacy.accountant=rdp", "rounds=4", *given)
    ledger = Ledger(make_plan(s, SIZES))
    for number in (1, 2):
        ledger.record_round(number, [0, 1, 2], {})
        if ledger.plan.per_example:
            ledger.record_mean(number, [0, 1, 2])
    return SimpleNamespace(settings=s, strategy=strategy, ledger=ledger)


def test_a_mean_of_plain_steps_has_it(settings):
    run = run_of(settings, FedSVD(), "training.local_steps=2")
    found = published_figure(run)
    assert found["assumed"] == ASSUMED
    assert found["epsilon"] == max(found["clients"].values()) < run.ledger.epsilon_max()
    json.dumps(found)


@pytest.mark.parametrize(
    ("strategy", "given", "why"),
    [
        (GeometricMedian(), [], "more of the replies than their mean"),
        (FlexLora(), [], "more of the replies than their mean"),
        (object(), [], "more of the replies than their mean"),
        (FedSa(), [], "more of the replies than their mean"),
        (LaLora(), [], "not plain SGD"),
        (FedSVD(), ["training.optimizer=adamw"], "not plain SGD"),
        (FedSVD(), ["attack=sign_flip"], "not honest"),
        (FedSVD(), ["model.head=grassmann"], "the head's subspaces"),
        (FedSVD(), ["privacy=client_level"], "the server's noise"),
        (FedSVD(), ["privacy=none"], "no privacy"),
    ],
)
def test_others_say_why_not(settings, strategy, given, why):
    found = published_figure(run_of(settings, strategy, *given))
    assert found["epsilon"] is None
    assert why in found["assumed"]
