import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsvd.rounds.participation import participants, rounds_bound
from fedsvd.settings import ClientSettings


def some_features(number, columns=12, seed=0):
    rows = np.random.default_rng(seed).normal(size=(number, columns))
    return tuple(tuple(row) for row in rows.tolist())


def schedule(clients, rounds, seed):
    taken = [0] * clients.number
    drawn = []
    for round in range(1, rounds + 1):
        chosen = participants(clients, rounds_bound(clients, rounds), seed, round, taken).clients
        for k in chosen:
            taken[k] += 1
        drawn.append(chosen)
    return drawn, taken


@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 30), st.integers(0, 99),
    st.sampled_from(["balanced", "uniform", "poisson", "all", "dpp"]),
)  # fmt: skip
def test_nobody_exceeds_the_bound_and_nobody_is_drawn_twice(number, per, rounds, seed, kind):
    clients = ClientSettings(number, min(per, number), kind, features=some_features(number))
    drawn, taken = schedule(clients, rounds, seed)
    assert max(taken) <= rounds_bound(clients, rounds)
    for chosen in drawn:
        assert chosen == sorted(set(chosen))
        assert all(0 <= k < number for k in chosen)


def test_balanced_gives_each_client_exactly_its_share():
    drawn, taken = schedule(ClientSettings(6, 3), 20, 0)
    assert taken == [10] * 6
    assert all(len(c) == 3 for c in drawn)
    assert drawn != schedule(ClientSettings(6, 3), 20, 1)[0]
    assert drawn == schedule(ClientSettings(6, 3), 20, 0)[0]


def test_a_declared_bound_is_kept():
    _, taken = schedule(ClientSettings(6, 3, "uniform", max_rounds=4), 50, 0)
    assert max(taken) == 4


def test_diverse_cohorts_are_of_one_size_and_may_meet_again_in_every_round():
    clients = ClientSettings(6, 3, "dpp", features=some_features(6))
    assert rounds_bound(clients, 20) == 20
    drawn, _ = schedule(clients, 20, 0)
    assert {len(c) for c in drawn} == {3}
    assert len(set(map(tuple, drawn))) > 3
    assert drawn == schedule(clients, 20, 0)[0] != schedule(clients, 20, 1)[0]
    few = ClientSettings(6, 3, "dpp", max_rounds=4, features=some_features(6))
    assert rounds_bound(few, 20) == 4
    for round, chosen in enumerate(
        drawn, start=1
    ):  # whoever is at the bound leaves its place empty
        draw = participants(few, 4, 0, round, [4, 0, 0, 0, 0, 0])
        assert (draw.clients, draw.at_bound) == ([k for k in chosen if k], [0] * (0 in chosen))


@pytest.mark.parametrize("secret", [False, True])
@pytest.mark.parametrize("kind", ["uniform", "poisson"])
def test_draws_are_uniform_over_clients(kind, secret):
    counts = [0] * 6
    clients = ClientSettings(6, 3, kind)
    for seed in range(600):
        draw = participants(clients, 1000, None if secret else seed, 1, [0] * 6)
        for k in draw.clients:
            counts[k] += 1
    assert all(abs(c / 600 - 0.5) < 0.1 for c in counts)


def test_without_a_seed_nobody_can_repeat_the_draw():
    clients = ClientSettings(100, 50, "poisson")
    assert participants(clients, 9, None, 1, [0] * 100) != participants(
        clients, 9, None, 1, [0] * 100
    )
    assert participants(clients, 9, 0, 1, [0] * 100) == participants(clients, 9, 0, 1, [0] * 100)


def test_who_is_at_the_bound_is_named_and_its_place_stays_empty():
    clients = ClientSettings(6, 6, "uniform")
    draw = participants(clients, 2, 0, 1, [0, 1, 2, 3, 0, 2])
    assert draw.clients == [0, 1, 4]
    assert draw.at_bound == [2, 3, 5]
