from unittest.mock import patch

import pytest

from fedsvd import randomness
from fedsvd.experiment import prepare
from fedsvd.randomness import Purpose
from fedsvd.rounds.attempt import one_round
from fedsvd.strategies.build import build_strategy
from tests.conftest import compose_settings
from tests.privacy.proofs import CHECKS, OVERRIDES


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_the_real_code_passes(name):
    CHECKS[name]()


def test_no_stream_is_used_twice_in_a_run_or_after_it_goes_on():
    settings = compose_settings(*OVERRIDES)
    used = []
    real = randomness.stream_key

    def record(seed, purpose, *keys):
        used.append((purpose, keys, real(seed, purpose, *keys)))
        return used[-1][2]

    first = prepare(settings, build_strategy(settings.strategy))
    with patch.object(randomness, "stream_key", record):
        for number in (1, 2):
            one_round(first, number)
        # As after a resume: other objects, the state and the ledger of the first.
        second = prepare(settings, build_strategy(settings.strategy))
        second.state, second.rounds_taken = first.state, first.rounds_taken
        second.ledger.load(first.ledger.as_dict())
        for number in (3, 4):
            one_round(second, number)
    purposes = {purpose for purpose, _, _ in used}
    assert purposes >= {Purpose.PARTICIPATION, Purpose.SAMPLING, Purpose.NOISE, Purpose.DROPOUT}
    assert len({(purpose, keys) for purpose, keys, _ in used}) == len(used)
    assert len({key for _, _, key in used}) == len(used)
    assert max(second.rounds_taken) == 2
    assert second.ledger.epsilon_max() <= 1
