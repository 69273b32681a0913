"""Attacks: what each sends, and that a run with one goes on."""

import pytest
import torch

from fedsvd.client.attack import poison
from fedsvd.experiment import prepare
from fedsvd.objectives.classification import flip
from fedsvd.rounds.attempt import one_round
from fedsvd.settings import AttackSettings
from fedsvd.strategies.build import build_strategy
from tests.conftest import TINY, compose_settings

SENT, RECEIVED = {"q.B": torch.tensor([[3.0, 1.0]])}, {"q.B": torch.tensor([[1.0, 2.0]])}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sign_flip", [[-3.0, 4.0]]), ("scaled", [[5.0, 0.0]]), ("label_flip", [[3.0, 1.0]]),
        ("non_finite", [[float("nan")] * 2]),
    ],
)  # fmt: skip
def test_what_is_sent(name, expected):
    attack = AttackSettings(name, (0,), scale=2.0)
    got = poison(SENT, RECEIVED, attack, torch.Generator())["q.B"]
    torch.testing.assert_close(got, torch.tensor(expected), equal_nan=True)


def test_gaussian_noise_is_around_what_was_received():
    received = {"q.B": torch.full((200, 50), 2.0)}
    attack = AttackSettings("gaussian", (0,), std=0.5)
    got = poison(received, received, attack, torch.Generator().manual_seed(0))["q.B"]
    assert abs(float(got.mean()) - 2.0) < 0.02
    assert abs(float(got.std()) - 0.5) < 0.02


def test_labels_are_turned_around():
    assert flip(torch.tensor([0, 1, 2, 3]), 4).tolist() == [3, 2, 1, 0]


def test_a_client_that_sends_nan_is_left_out_and_one_with_wrong_labels_is_not():
    def round_under(*overrides):
        settings = compose_settings(*TINY, "privacy=none", "clients.participation=all", *overrides)
        run = prepare(settings, build_strategy(settings.strategy))
        return one_round(run, 1), run.state

    clean, state = round_under()
    spoilt, _ = round_under("attack=non_finite", "attack.clients=[2]")
    assert list(spoilt["failed"]) == ["2"]
    assert "not finite" in spoilt["failed"]["2"]
    flipped, other = round_under("attack=label_flip", "attack.clients=[2]")
    assert clean["failed"] == flipped["failed"] == {}
    assert state.digest() != other.digest()
    assert clean["reports"]["1"] == flipped["reports"]["1"]
    assert clean["reports"]["2"]["loss"] != flipped["reports"]["2"]["loss"]
