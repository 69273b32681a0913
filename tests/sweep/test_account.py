"""What a sweep tells of trials that failed: a line for each."""

import pytest

from fedsvd.sweep.account import Failure, failed, names


@pytest.mark.parametrize("odd", ["a\nb", "a\r\n\n b", "a\u2028b"])
def test_a_line_for_each_trial_that_failed(odd):
    failures = [Failure(i, f"data.path={odd}", f"no such: {odd}", True) for i in range(2)]
    error = failed(failures, 3)
    assert str(error).splitlines() == [
        "2 of 3 trials failed",
        "  trial 0 (data.path=a b): no such: a b",
        "  trial 1 (data.path=a b): no such: a b",
    ]
    assert error.status == 1  # one of three was not refused
    assert failed(failures, 2).status == 2
    assert str(failed(failures[:1], 1)) == "trial 0 (data.path=a b): no such: a b"


def test_names_are_what_trials_do_not_share():
    assert names([["a=1", "b=2"], ["a=1", "b=3"]]) == ["b=2", "b=3"]
