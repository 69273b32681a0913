"""Whatever ends a client's training, and wherever, the next client trains as in a fresh process."""

import ctypes
import sys
import threading

import pytest
import torch

from fedsvd.client import training
from fedsvd.client.rule import LocalRule
from fedsvd.client.training import train_locally
from fedsvd.privacy import dpsgd
from fedsvd.privacy.hooks import Hooks
from fedsvd.testing.architectures import ARCHITECTURES, small_worker
from tests.privacy.steps import N

RULE = LocalRule(alternates=True)
KINDS = {
    "plain": ([], LocalRule()),
    "turns": (["training.local_steps=3"], RULE),
    "dropout": (["model.dropout=0.1", "adapter.dropout=0.1"], RULE),
    "loop": (["privacy.gradients=loop", "model.dropout=0.1"], RULE),
    "parts": (["training.microbatch_tokens=40"], RULE),  # a batch of several micro-batches
    "kept": (["adapter.layers=1", "adapter.dropout=0.1"], RULE),
}


class Stopped(Exception):
    """What ends a training."""


def make(kind):
    given, rule = KINDS[kind]
    return small_worker(ARCHITECTURES["BERT"], "training.local_steps=2", *given, n=N), rule


def train(worker, rule, client=0, round=2):
    return train_locally(worker, worker.initial, client, round, rule=rule).state.digest()


def in_forward(patch, worker):
    layer = worker.model.backbone.encoder.layer[1].attention.self.value
    return layer.register_forward_hook(stop)


def in_the_lowest_layer(patch, worker):
    layer = next(iter(worker.model.layers.values())).lora_A["default"]
    return layer.register_forward_hook(stop)


def between_forward_and_backward(patch, worker):
    real = training.own_losses

    def own(*args):
        losses = real(*args)

        def then(rows):
            losses(rows)
            stop()

        return then

    patch.setattr(training, "own_losses", own)


def in_backward(patch, worker):
    layer = worker.model.backbone.encoder.layer[1].attention.output.dense
    return layer.register_forward_hook(lambda m, i, out: out.register_hook(stop) and None)


def in_clipping(patch, worker):
    patch.setattr(dpsgd, "clipped_sums", stop)


def in_the_second_micro_batch(patch, worker):
    real, seen = dpsgd.clipped_sums, []

    def second(*args):
        seen.append(1)
        return stop() if len(seen) == 2 else real(*args)

    patch.setattr(dpsgd, "clipped_sums", second)


def in_noise(patch, worker):
    patch.setattr(dpsgd, "noised", stop)


def stop(*_):
    raise Stopped


PLACES = (
    in_forward, in_the_lowest_layer, between_forward_and_backward, in_backward, in_clipping,
    in_the_second_micro_batch, in_noise,
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_failure_anywhere_the_next_client_is_as_in_a_fresh_process(kind):
    worker, rule = make(kind)
    expected = train(worker, rule)
    worker, _ = make(kind)
    for place in PLACES:
        with pytest.MonkeyPatch.context() as patch:
            handle = place(patch, worker)
            with pytest.raises(Stopped):
                train(worker, rule, 0, 1)
            if handle is not None:
                handle.remove()
        assert train(worker, rule) == expected, place.__name__
        assert all(getattr(p, "_forward_counter", 0) == 0 for p in worker.model.parameters())
        assert worker.use.clean
        assert not worker.use.threads


def test_opacus_alone_would_not_recover(monkeypatch):
    worker, rule = make("plain")
    monkeypatch.setattr(type(worker), "mend", lambda self: None)
    with pytest.MonkeyPatch.context() as patch:
        between_forward_and_backward(patch, worker)
        with pytest.raises(Stopped):
            train(worker, rule, 0, 1)
    with pytest.raises(RuntimeError, match="what another pass has left"):
        train(worker, rule)


OURS = ("fedsvd/client", "fedsvd/models", "fedsvd/privacy", "opacus")


class At:
    """Raises Stopped once, at the given one of the lines that our code runs; or counts them."""

    def __init__(self, number):
        self.left = self.number = number
        self.lines = 0

    def __call__(self, frame, event, arg):
        name = frame.f_code.co_filename
        ours = any(part in name for part in OURS)
        return self._line if ours else None

    def _line(self, frame, event, arg):
        if event == "line":
            self.lines += 1
            if self.lines == self.number:
                raise Stopped
        return self._line


def traced(number, worker, rule):
    if worker.kept is not None:
        worker.kept.store.held.clear()  # what is kept is made anew, and may be interrupted too
    tracer, before = At(number), sys.gettrace()
    sys.settrace(tracer)
    try:
        train(worker, rule, 0, 1)
    except Stopped:
        pass
    finally:
        sys.settrace(before)
    return tracer.lines


@pytest.mark.parametrize("kind", ["turns", "dropout", "kept"])
def test_an_asynchronous_exception_at_any_line_mixes_nothing(kind):
    worker, rule = make(kind)
    expected = train(worker, rule)
    lines = traced(0, worker, rule)
    g = torch.Generator().manual_seed(0)
    places = {*torch.randint(1, lines, (24,), generator=g).tolist(), *range(lines - 12, lines + 1)}
    for number in sorted(places):
        traced(number, worker, rule)
        assert train(worker, rule) == expected, number


def test_a_deadline_from_a_thread_mixes_nothing():
    worker, rule = make("turns")
    expected = train(worker, rule)
    me = ctypes.c_ulong(threading.get_ident())
    stopped = 0
    for milliseconds in range(1, 40, 3):
        done = threading.Event()

        def ring(wait=milliseconds / 1000, done=done):
            if not done.wait(wait):
                ctypes.pythonapi.PyThreadState_SetAsyncExc(me, ctypes.py_object(Stopped))

        thread = threading.Thread(target=ring)
        try:
            thread.start()
            train(worker, rule, 0, 1)
            done.set()
            thread.join()
        except Stopped:
            stopped += 1
            thread.join()
        assert train(worker, rule) == expected
    assert stopped


def test_who_was_given_up_and_still_trains_keeps_others_out():
    worker, rule = make("plain")
    expected = train(worker, rule)
    inside, go = threading.Event(), threading.Event()
    layer = worker.model.backbone.encoder.layer[1].attention.self.value

    def wait(*_):
        inside.set()
        go.wait(60)

    handle = layer.register_forward_hook(wait)
    thread = threading.Thread(target=lambda: train(worker, rule, 0, 1))
    thread.start()
    assert inside.wait(60)
    handle.remove()
    with pytest.raises(RuntimeError, match="another client is training"):
        train(worker, rule)
    go.set()
    thread.join()
    assert train(worker, rule) == expected


def test_a_failed_client_of_the_app_leaves_nothing_to_the_next():
    from flwr.app import ConfigRecord, Message, RecordDict

    from fedsvd.client.app import make_client_app
    from fedsvd.client.worker import get_worker
    from fedsvd.engines.inline import InlineGrid
    from fedsvd.records import ARRAYS, CONFIG, FAILED, arrays_of, report_of, to_record
    from tests.conftest import TINY, compose_settings

    settings = compose_settings(*TINY, "seed=41")
    worker = get_worker(settings)
    grid = InlineGrid(make_client_app(settings), 6)

    def ask(client):
        arrays = to_record(worker.initial.tensors())
        config = ConfigRecord({"server-round": 1})
        content = RecordDict({ARRAYS: arrays, CONFIG: config})
        (reply,) = grid.send_and_receive([Message(content, client, "train")])
        return reply

    expected = [array.data for array in arrays_of(ask(1)).values()]
    layer = next(iter(worker.model.layers.values()))
    handle = layer.register_forward_hook(stop)
    assert "Stopped" in report_of(ask(0))[FAILED]
    handle.remove()
    assert [array.data for array in arrays_of(ask(1)).values()] == expected


def test_hooks_are_stripped_without_a_trace():
    worker, _ = make("plain")
    model = worker.model
    model(worker.tokens.batch(range(3)).inputs).sum()  # a forward pass that nobody ends
    del model.autograd_grad_sample_hooks[2:]  # an interrupted removal
    worker.hooks.cleanup()
    assert not any(m._backward_hooks for m in model.modules())
    assert not any("activations" in vars(m) for m in model.modules())
    names = ("grad_sample", "_forward_counter", "_current_grad_sample", "summed_grad")
    assert not any(hasattr(p, name) for p in model.parameters() for name in names)
    assert isinstance(Hooks(model), Hooks)
