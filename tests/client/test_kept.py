"""What enters the lowest adapted block is kept, and nothing but the time tells."""

import errno
import json
import os
import tempfile
from dataclasses import replace

import pytest
import torch

from fedsvd import experiment
from fedsvd.checkpoints.identity import flat, surroundings
from fedsvd.client import arena, kept, worker
from fedsvd.client.arena import Arena
from fedsvd.client.kept import Kept
from fedsvd.client.training import train_locally
from fedsvd.client.worker import build_worker
from fedsvd.engines.ray import worker_settings
from fedsvd.errors import InputError
from fedsvd.strategies.build import build_strategy
from fedsvd.testing.architectures import ARCHITECTURES, DECODER, small_backbone, small_worker
from tests.conftest import TINY, compose_settings
from tests.privacy.steps import GIVEN, N, moved_state, step_sum
from tests.tiny import make_inputs, outcome, run

THREE = {
    "BERT": {"num_hidden_layers": 3},
    "RoBERTa": {"num_hidden_layers": 3},
    "DistilBERT": {**ARCHITECTURES["DistilBERT"].settings, "n_layers": 3},
    "MPNet": {"num_hidden_layers": 3},
    "GPT-2": {**ARCHITECTURES["GPT-2"].settings, "n_layer": 3},
    "Llama": {**DECODER, "num_hidden_layers": 3},
    "Qwen2": {**DECODER, "num_hidden_layers": 3},
}
OFF = "training.cache=off"


def three(name, *overrides, **how):
    """A worker with three blocks, of which the last one or two are adapted."""
    architecture = replace(ARCHITECTURES[name], settings=THREE[name])
    layers = [] if any("layers" in o for o in overrides) else ["adapter.layers=upper_third"]
    return small_worker(architecture, *layers, *overrides, **how)


def gradients(worker, rows):
    named = worker.model.trainable()
    losses = worker.losses(rows)
    found = torch.autograd.grad(losses.sum(), list(named.values()))
    return losses, torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("layers", ["1", "2"])
@pytest.mark.parametrize("name", THREE)
def test_losses_gradients_and_logits_are_those_of_the_whole_model(name, layers):
    found = []
    for more in ([], [OFF]):
        one = three(name, f"adapter.layers={layers}", *more, "privacy=none")
        assert (one.kept is None) == bool(more)
        one.model.write(moved_state(one))
        one.model.double()
        found.append((*gradients(one, [0, 5, 3, 8]), one.outputs([7, 2, 0])))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["BERT", "Llama"])
@pytest.mark.parametrize("gradients", ["hooks", "loop"])
def test_a_clipped_step_is_that_of_the_whole_model(name, gradients):
    given = [*GIVEN, f"privacy.gradients={gradients}", "training.microbatch_tokens=40"]
    ours, plain = three(name, *given), three(name, *given, OFF)
    assert ours.plan.gradients == gradients
    state, rows = moved_state(ours), list(range(12))
    sums = [step_sum(one, rows, state) for one in (ours, plain)]
    clip = ours.settings.privacy.clip_norm
    assert float((sums[0] - sums[1]).norm()) < 1e-2 * clip < float(sums[1].norm())
    assert len(ours.kept.store.held) == 12


def test_the_bits_depend_on_the_example_alone():
    one = three("BERT")
    first = {r: one.kept.entering(one.tokens, [r])[0] for r in (3, 0, 7)}
    fresh = one.kept.apart()
    one.outputs(list(range(12)))  # others, in inference mode and in batches, between
    for rows in ([7, 1, 3], [0, 2, 5, 3, 7, 11]):
        for source in (one.kept, fresh):
            batch = source.entering(one.tokens, rows)
            assert batch.shape == (len(rows), int(one.tokens.lengths[rows].max()), 16)
            for row, states in zip(rows, batch, strict=True):
                length = int(one.tokens.lengths[row])
                assert not states[length:].any()
                if row in first:
                    assert torch.equal(states[:length], first[row])


def test_what_is_kept_in_inference_mode_can_train():
    one = three("BERT")
    before = one.evaluate(one.initial, one.parts[0])
    after = train_locally(one, one.initial, 0, 1)
    assert after.steps[0].examples > 0
    assert one.evaluate(one.initial, one.parts[0]) == before


def test_files_hold_the_same_bits_and_leave_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(arena, "CHUNK", 2000)
    memory = three("BERT")
    rows = list(range(12))
    expected = memory.kept.entering(memory.tokens, rows)
    assert memory.kept.store.arena.files == 0
    for budget, in_memory in ((0, 0), (4500, 4000)):
        mapped = three("BERT", f"training.cache={budget}")
        assert torch.equal(mapped.kept.entering(mapped.tokens, rows), expected)
        assert torch.equal(mapped.kept.entering(mapped.tokens, rows[::-1]).flip(0), expected)
        found = mapped.kept.store.arena
        assert found.memory == in_memory
        assert found.files > 0
    assert os.listdir(tmp_path) == []


def test_an_arena_keeps_every_dtype_and_what_is_larger_than_a_chunk(monkeypatch):
    monkeypatch.setattr(arena, "CHUNK", 256)
    for budget in (0, 10**6):
        room, held = Arena(budget), []
        for n, dtype in enumerate([torch.bfloat16, torch.float64, torch.float32] * 4):
            value = torch.randn(n + 1, 7).to(dtype)
            held.append((value, room.hold(value)))
        value = torch.randn(100, 7)
        held.append((value, room.hold(value)))
        assert all(torch.equal(value, kept) and value is not kept for value, kept in held)


def test_a_full_disk_costs_time_and_is_told_once(monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(arena, "_reserve", full)
    one, whole = three("BERT", "training.cache=0"), three("BERT")
    capsys.readouterr()
    for _ in range(2):
        assert torch.equal(one.outputs([0, 1, 2]), whole.outputs([0, 1, 2]))
    told = capsys.readouterr().err
    assert told.count("training.cache: No space left on device") == 1
    assert not one.kept.store.held


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no such call here")
def test_a_files_blocks_are_taken_before_it_is_written(monkeypatch):
    """Else a full disk would end the process when the map is written to."""
    found, real = [], arena._reserve

    def seen(file, size):
        before = os.fstat(file).st_blocks
        real(file, size)
        after = os.fstat(file)
        found.append((before, after.st_blocks * 512 >= size, after.st_size == size))

    monkeypatch.setattr(arena, "_reserve", seen)
    Arena(0).hold(torch.ones(5))
    assert found == [(0, True, True)]

    def full(file, offset, size):
        assert (offset, size) == (0, arena.CHUNK)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        Arena(0).hold(torch.ones(5))
    monkeypatch.delattr(os, "posix_fallocate")
    assert torch.equal(Arena(0).hold(torch.ones(5)), torch.ones(5))


@pytest.mark.parametrize("budget", [0, 2500, 4500, 10**6])
def test_memory_alone_is_never_more_than_the_budget(monkeypatch, tmp_path, budget):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: pytest.fail("a file was made"))
    monkeypatch.setattr(arena, "CHUNK", 2000)
    room, held = Arena(budget, on_disk=False), 0
    for _ in range(100):
        try:
            room.hold(torch.ones(48))
            held += 1
        except OSError:
            break
    assert room.memory <= budget
    assert room.files == 0
    assert held == min(100, 10 * (budget // 2000) + budget % 2000 // 192)


def test_a_node_keeps_hidden_states_in_memory_alone(tmp_path, monkeypatch, capsys):
    """Beyond the limit they are computed again, to the same bits; a simulation would take files."""
    given = [*make_inputs(tmp_path), "adapter.layers=1", "training.cache=3000"]
    own = [
        "partition=own", "partition.holder=0", "privacy.secure_noise=true",
        "privacy.diagnostics=false",
    ]  # fmt: skip
    # Of the node alone: what its rows are split into for the simulation is another matter.
    node, drawn = (build_worker(compose_settings(*given, *more)) for more in (own, []))
    rows = list(range(20))
    capsys.readouterr()
    found = [node.kept.entering(node.tokens, rows) for _ in range(2)]
    told = capsys.readouterr().err
    assert told.count("training.cache: 3000 bytes are full; what finds no room in memory is") == 1
    store = node.kept.store
    assert 0 < len(store.held) < len(rows)
    assert (store.arena.memory, store.arena.files) == (3000, 0)
    assert torch.equal(*found)
    fresh = node.kept.apart()
    assert not fresh.store.arena.on_disk
    assert torch.equal(fresh.entering(node.tokens, rows[::-1]).flip(0), found[0])
    drawn.kept.entering(drawn.tokens, rows)
    assert drawn.kept.store is not store  # not even where the weights are the same
    assert drawn.kept.store.arena.files > 0


def test_more_memory_than_was_full_is_used():
    key = ("weights", "test")
    store = kept.store_for(key, 10, False)
    store.full = True
    assert kept.store_for(key, 5, False).full
    assert not kept.store_for(key, 20, False).full


def count(monkeypatch):
    calls, real = [], Kept.entering
    monkeypatch.setattr(
        Kept, "entering", lambda self, *given: (calls.append(1), real(self, *given))[1]
    )
    return calls


def test_dropout_below_turns_it_off_for_steps_alone(monkeypatch):
    one, plain = (three("BERT", "model.dropout=0.3", *more) for more in ([], [OFF]))
    assert (
        one.blocks == "the lower 2 of 3 blocks run once an example, but in every step with dropout"
    )
    calls = count(monkeypatch)
    state = moved_state(one)
    ends = [train_locally(w, state, 0, 1).state.digest() for w in (one, plain)]
    assert ends[0] == ends[1]
    assert not calls
    torch.testing.assert_close(one.outputs([0, 1]), plain.outputs([0, 1]), rtol=1e-5, atol=1e-6)
    assert calls


def test_dropout_above_is_drawn_as_ever():
    """The masks of adapted layers are the examples' own, and nothing below draws any."""
    given = [*GIVEN, "adapter.dropout=0.5"]
    one, plain = three("BERT", *given), three("BERT", *given, OFF)
    assert one.kept.trains
    state, rows = moved_state(one), list(range(12))
    sums = [step_sum(w, rows, state) for w in (one, plain)]
    assert float((sums[0] - sums[1]).norm()) < 1e-2 * one.settings.privacy.clip_norm


def test_the_check_of_gradients_asks_the_path_that_trains(monkeypatch):
    calls = count(monkeypatch)
    three("BERT", OFF)
    assert not calls
    three("BERT")
    asked = len(calls)
    three("BERT", "privacy=none")
    settled = asked - (len(calls) - asked)
    assert settled > 5  # beyond what is asked before anything is kept


def test_states_that_see_their_batch_would_be_refused(monkeypatch):
    real, fault = Kept.entering, kept._fault

    def leaking(self, tokens, rows):
        out = real(self, tokens, rows)
        return out + 0.3 * out[:1, :1]

    def believing(kept, asked):
        fault(kept, asked)
        return ""

    monkeypatch.setattr(Kept, "entering", leaking)
    assert three("BERT").kept is None
    monkeypatch.setattr(kept, "_fault", believing)
    with pytest.raises(InputError, match="'hooks' is not allowed"):
        three("BERT", "privacy.gradients=hooks")


@pytest.mark.parametrize("name", ["T5, its encoder", "XLNet", "Longformer", "FNet", "XLM"])
def test_a_model_that_cannot_run_from_there_is_left_as_it_was(name):
    given = ["adapter.layers=1", "privacy=none"]
    one = small_worker(ARCHITECTURES[name], *given)
    plain = small_worker(ARCHITECTURES[name], *given, OFF)
    assert one.kept is None
    assert one.model.lower is None
    assert one.blocks.startswith("the lower 1 of 2 blocks run every time: ")
    assert not any("forward" in vars(module) for module in one.model.modules())
    state = moved_state(one)
    ends = [train_locally(w, state, 0, 1).state.digest() for w in (one, plain)]
    assert ends[0] == ends[1]


def draws(block, inputs, output):
    torch.rand(1)


def remembers(block, inputs, output):
    block.seen.add_(1)


@pytest.mark.parametrize(
    ("does", "why"),
    [
        (draws, "the model draws random numbers"),
        (remembers, "the model remembers what it has seen"),
    ],
)
@pytest.mark.parametrize("at", [0, 2])
def test_a_model_that_is_no_function_of_the_tokens_is_run_as_a_whole(does, why, at):
    backbone = small_backbone(replace(ARCHITECTURES["BERT"], settings=THREE["BERT"]))
    block = backbone.encoder.layer[at]
    block.register_buffer("seen", torch.zeros(1))
    block.register_forward_hook(does)
    drawn = torch.get_rng_state()
    one = three("BERT", "privacy=none", backbone=backbone)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert (one.kept, one.model.lower) == (None, None)
    assert one.blocks.endswith(f"run every time: {why}")


def test_wrong_states_are_seen(monkeypatch):
    real = Kept._computed
    monkeypatch.setattr(Kept, "_computed", lambda self, *given: 1.01 * real(self, *given).flip(0))
    one = three("BERT")
    assert one.kept is None
    assert "the features differ by" in one.blocks


def test_nothing_is_kept_and_nothing_said_where_the_lowest_block_is_adapted():
    for given in (["adapter.layers=3"], ["adapter.layers=null"]):
        one = three("BERT", *given)
        assert (one.kept, one.blocks, one.model.lower) == (None, "", None)
    assert three("BERT", "adapter.layers=null", OFF).blocks == ""


def test_an_interrupted_run_of_a_part_leaves_the_whole(monkeypatch):
    one = three("BERT", "privacy=none")
    ids = one.tokens.batch([0, 1]).inputs
    expected = one.model(ids)
    block = one.model.backbone.encoder.layer[2]
    handle = block.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        one.losses([0, 1])
    handle.remove()
    assert torch.equal(one.model(ids), expected)
    one.model.lower._mode = "below"  # as an exception within the tidying would leave it
    assert torch.equal(one.model(ids), expected)


def test_bf16_is_kept_in_bf16_and_enters_as_it_would():
    one, plain = (three("BERT", *more, "privacy=none") for more in ([], [OFF]))
    single = one.kept.entering(one.tokens, [0])
    one.model.precision = plain.model.precision = "bf16"
    half = one.kept.entering(one.tokens, [0])
    assert {t.dtype for t in one.kept.store.held.values()} == {torch.float32, torch.bfloat16}
    assert half.dtype == torch.float32
    assert not torch.equal(single, half)
    torch.testing.assert_close(one.outputs([0, 1]), plain.outputs([0, 1]), rtol=0.05, atol=0.05)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return [*make_inputs(tmp_path_factory.mktemp("inputs")), "adapter.layers=1"]


def test_a_resumed_run_has_the_same_bits(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fedsvd.recorders.report.write_report", lambda *_: None)
    run(tmp_path / "straight", inputs)
    assert "fp32; the lower 1 of 2 blocks run once an example" in capsys.readouterr().out
    real = experiment.one_round

    class Kill(BaseException):
        pass

    def dying(run, n):
        if n > 2:
            raise Kill
        return real(run, n)

    monkeypatch.setattr(experiment, "one_round", dying)
    with pytest.raises(Kill):
        run(tmp_path / "run", inputs)
    monkeypatch.setattr(experiment, "one_round", real)
    worker._built.clear()  # as in another process
    kept._stores.clear()
    with pytest.raises(InputError, match=r"training\.cache was 'on', now None"):
        run(tmp_path / "run", inputs, OFF, "resume=auto")
    run(tmp_path / "run", inputs, "resume=auto")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")


def test_the_memory_is_free_to_change_and_whether_is_not(inputs):
    settings = compose_settings(*inputs)
    on, small, off = (
        build_worker(compose_settings(*inputs, *more))
        for more in ([], ["training.cache=1000"], [OFF])
    )
    assert flat(on.settings) == flat(small.settings) == flat(off.settings)
    told = surroundings(on)
    assert told == surroundings(small)
    assert told.pop("training.cache") == "on"
    assert told == surroundings(off)
    assert worker_settings(settings, ("B",), "hooks", False).training.cache == "off"
    assert worker_settings(settings, ("B",), "hooks").training.cache == "auto"


def test_a_later_run_on_the_same_weights_finds_what_is_there(inputs):
    first = build_worker(compose_settings(*inputs))
    first.outputs([0, 1, 2])
    second = build_worker(compose_settings(*inputs, "training.lr=0.1", "training.cache=7"))
    assert second.kept.store is first.kept.store
    assert len(second.kept.store.held) == 3
    third = build_worker(compose_settings(*inputs, "engine.threads=2"))
    assert third.kept.store is not first.kept.store


def test_equal_weights_of_another_form_share_nothing(tmp_path):
    """What a norm adds, the number of heads, the activation: in no weight, and in every state."""
    given = [*make_inputs(tmp_path), "adapter.layers=1"]
    first = build_worker(compose_settings(*given))
    states = first.kept.entering(first.tokens, [0, 1])
    file = tmp_path / "model" / "config.json"
    form = json.loads(file.read_text())
    file.write_text(json.dumps({**form, "layer_norm_eps": 1.0}))
    other = build_worker(compose_settings(*given))
    assert other.weights == first.weights
    assert other.kept.store is not first.kept.store
    assert not torch.allclose(other.kept.entering(other.tokens, [0, 1]), states, atol=1e-4)
    fresh = other.kept.apart().entering(other.tokens, [0, 1])
    assert torch.equal(other.kept.entering(other.tokens, [0, 1]), fresh)


def test_a_run_begins_with_the_rows_as_they_are(tmp_path):
    """Two runs in a process with equal settings, a row taken out between them."""
    settings = compose_settings(*make_inputs(tmp_path))
    file = tmp_path / "data.csv"
    runs = [experiment.prepare(settings, build_strategy(settings.strategy))]
    lines = file.read_text().splitlines()
    gone = runs[0].worker.task.texts[int(runs[0].worker.parts[2][0])]
    file.write_text("\n".join(line for line in lines if not line.startswith(f"{gone[0]},")))
    worker_of_the_first = worker.get_worker(settings)
    assert worker_of_the_first is runs[0].worker  # a run that is under way keeps its rows
    runs.append(experiment.prepare(settings, build_strategy(settings.strategy)))
    held = [{r.worker.task.texts[i] for part in r.worker.parts for i in part} for r in runs]
    assert held[0] - held[1] == {gone}
    assert not held[1] - held[0]
    again = experiment.prepare(settings, build_strategy(settings.strategy))
    assert again.worker is runs[1].worker  # nothing has changed since


@pytest.mark.parametrize("budget", ["auto", "0", "2000"])
@pytest.mark.parametrize("name", ["BERT", "Llama"])
def test_no_example_moves_more_than_its_clip_whatever_is_kept(name, budget):
    """Each left out in turn: which are kept, and of whom there is room for, depends on all."""
    one = three(name, *GIVEN, f"training.cache={budget}", n=N)
    one.kept.store.arena.on_disk = False
    state, rows = moved_state(one), list(range(N))
    fresh = one.kept.store.held
    sums = []
    for left in (rows, *([r for r in rows if r != out] for out in rows)):
        fresh.clear()
        sums.append(step_sum(one, left, state))
    clip = one.settings.privacy.clip_norm
    assert max(float((sums[0] - other).norm()) for other in sums[1:]) < 1.001 * clip


@pytest.mark.slow
def test_the_default_model():
    given = [*TINY, "adapter.layers=upper_third", "privacy=none", "engine.threads=1"]
    one, plain = (build_worker(compose_settings(*given, *more)) for more in ([], [OFF]))
    assert one.blocks == "the lower 4 of 6 blocks run once an example"
    assert len(one.model.layers) == 4
    rows = one.task.validation[:8]
    ends = [train_locally(w, w.initial, 0, 1).state for w in (one, plain)]
    for name, ours in ends[0].tensors().items():
        torch.testing.assert_close(ours, ends[1].tensors()[name], rtol=1e-3, atol=1e-6)
    found = [w.evaluate(end, rows) for w, end in zip((one, plain), ends, strict=True)]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-4)
