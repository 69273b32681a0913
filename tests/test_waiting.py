"""What is waited for is said after a while, then ever less often; signals are held, not lost."""

import os
import signal
import threading
import time

import pytest

from fedsvd import interrupt, waiting


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_lines_come_after_20_seconds_and_then_ever_less_often(clock, capsys):
    notice = waiting.Notice()
    said = []
    for second in range(400):
        clock[0] = 100.0 + second
        notice.look(lambda: "a thing")
        if line := capsys.readouterr().err:
            assert line == f"waiting since {second} s for a thing\n"
            said.append(second)
    assert said == [20, 60, 140, 300]
    notice.restart()  # a new wait, of which one knows that it takes long
    clock[0] += 300
    notice.look(lambda: pytest.fail("nothing is due"))
    clock[0] += 21
    notice.look(lambda: "another")
    assert capsys.readouterr().err == "waiting since 321 s for another\n"


def test_a_wait_in_a_library_is_told_from_beside(monkeypatch, capfd):
    monkeypatch.setattr(waiting, "FIRST", 0.1)
    with waiting.told(lambda: "the library"):
        time.sleep(0.5)
    told = capfd.readouterr().err.splitlines()
    assert 1 <= len(told) <= 3
    assert all(line.endswith(" s for the library") for line in told)
    assert not [t for t in threading.enumerate() if t.name == "waiting"]
    with waiting.told(lambda: pytest.fail("nothing is due")):
        pass


@pytest.mark.parametrize("training", [False, True])
def test_a_signal_within_held_is_acted_on_at_its_end(training, capfd):
    reached = []

    def slices():
        for _ in range(2 if training else 1):  # while rounds are under way the first lets go on
            with interrupt.held():
                os.kill(os.getpid(), signal.SIGTERM)
                reached.append("within")

    with interrupt.listening():
        interrupt.training(training)
        with pytest.raises(interrupt.Interrupted) as caught:
            slices()
    interrupt.training(False)
    assert reached == ["within"] * (2 if training else 1)
    assert caught.value.status == 143
    assert ("finishing the round" in capfd.readouterr().err) == training


def test_without_a_signal_nothing_happens_and_what_is_raised_passes():
    with interrupt.listening():
        with interrupt.held(), interrupt.held():
            pass
        with pytest.raises(KeyError), interrupt.held():
            raise KeyError
        interrupt.look()
        with pytest.raises(interrupt.Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
