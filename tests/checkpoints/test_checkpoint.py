"""Checkpoints that were cut, flipped or crafted are never read as something else."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from fedsvd.checkpoints.checkpoint import read_checkpoint, read_whole, write_checkpoint
from fedsvd.errors import InputError
from fedsvd.lowrank import AdapterState, LowRank


def make(path):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    factors = {f"layer{i}.z": LowRank(draw(4, 30), draw(20, 4)) for i in (2, 0, 1)}
    state = AdapterState(
        factors, {"head.weight": draw(2, 20)}, 7, {"layer0.z": draw(20, 30)}, {"m.x": draw(3)}
    )
    kept = {"client/3/personal/layer0.z.B": draw(20, 4), "empty": torch.zeros(0, 3),
            "scalar": torch.tensor(2.5, dtype=torch.float64)}  # fmt: skip
    facts = {"round": 7, "events": {"0": [[1, 2.5, "x"]]}, "noise": 0.1 + 0.2}
    write_checkpoint(path, state, kept, facts)
    return state, kept, facts


def test_what_is_written_is_read_in_order_and_bit_for_bit(tmp_path):
    state, kept, facts = make(tmp_path / "x.safetensors")
    found = read_whole(tmp_path / "x.safetensors")
    assert list(found.state.tensors()) == list(state.tensors())
    assert found.state.digest() == state.digest()
    assert found.state.round == 7
    assert found.facts == facts
    assert {n: t.tolist() for n, t in found.tensors.items()} == {
        n: t.tolist() for n, t in kept.items()
    }
    assert found.tensors["scalar"].dtype == torch.float64
    assert read_checkpoint(tmp_path / "x.safetensors").digest() == state.digest()


def same(path, state, kept, facts):
    """Return whether the file reads as what was written; InputError if it does not read."""
    found = read_whole(path)
    return (
        found.state.digest() == state.digest()
        and list(found.state.tensors()) == list(state.tensors())
        and found.state.round == state.round
        and found.facts == facts
        and all(torch.equal(found.tensors[n], t) for n, t in kept.items())
    )


def test_every_cut_is_told(tmp_path):
    path = tmp_path / "x.safetensors"
    make(path)
    data = path.read_bytes()
    cuts = [*range(0, len(data), 1024), *range(0, 64), len(data) - 1]
    for cut in cuts:
        path.write_bytes(data[:cut])
        with pytest.raises(InputError, match=r"x\.safetensors: is (damaged|not a checkpoint)"):
            read_whole(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(InputError, match="is damaged"):
        read_whole(path)


@pytest.mark.parametrize("part", ["header", "tensors"])
def test_no_flipped_bit_changes_what_is_read(part, tmp_path):
    path = tmp_path / "x.safetensors"
    written = make(path)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(0)
    low, high = (0, start) if part == "header" else (start, len(data))
    told = 0
    for place in rng.integers(low, high, 600):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            unchanged = same(path, *written)
        except InputError:
            told += 1
        else:
            assert unchanged
    assert told > 590  # what is not told is padding


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "arbitrary.safetensors"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"arbitrary\.safetensors"):
        read_whole(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "its format is None"),
        ({"format": "pt"}, "its format is 'pt'"),
        ({"format": "fedsvd-state-1"}, "its format is 'fedsvd-state-1'"),
        ({"format": "fedsvd-checkpoint-1"}, "is damaged"),
        ({"format": "fedsvd-checkpoint-1", "facts": "{}", "sha256": "0"}, "checksum"),
    ],
)
def test_other_files_are_refused(metadata, message, tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(InputError, match=message):
        read_whole(tmp_path / "x.safetensors")


def test_a_pickle_is_not_read(tmp_path):
    """A file that torch.load would run code from."""

    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    torch.save(Bomb(), tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="is damaged"):
        read_whole(tmp_path / "x.safetensors")
    assert not (tmp_path / "ran").exists()


def test_deep_json_and_huge_headers_are_refused(tmp_path):
    deep = b'{"__metadata__":' + b"[" * 100_000
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(deep).to_bytes(8, "little") + deep)
    with pytest.raises(InputError, match="is damaged"):
        read_whole(path)
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match="before its header"):
        read_whole(path)


def test_the_journal_cuts_a_torn_line_and_refuses_a_damaged_one(tmp_path):
    from fedsvd.rounds.journal import Entry, Journal

    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    first, second = Entry(1, 0, "p", [0, 2], 3), Entry(2, 0, "q", [1], 3)
    journal.asked(first)
    journal.replied(first, {2: "raised"}, {0: 3, 2: 1})
    journal.settle([first])
    journal.asked(second)
    whole = path.read_bytes()
    for cut in range(whole.rindex(b"\n", 0, -1) + 1, len(whole)):
        path.write_bytes(whole[:cut])
        again = Journal(path)
        again.read(2)
        assert again.open == {}
        assert again.lines == 2
        assert path.read_bytes() == whole[: whole.rindex(b"\n", 0, -1) + 1]
    path.write_bytes(whole)
    again = Journal(path)
    again.read(0)
    assert again.of_round(1) == [Entry(1, 0, "p", [0, 2], 3, {"2": "raised"}, {"0": 3, "2": 1})]
    assert again.reserved(after=1) == {1: 3}
    assert again.reserved(after=0) == {0: 3, 2: 3, 1: 3}
    rng = np.random.default_rng(1)
    for place in rng.integers(0, len(whole) - 1, 200):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        if flipped[place] == ord("\n") or whole[place] == ord("\n"):
            continue
        path.write_bytes(flipped)
        with pytest.raises(InputError, match=r"journal\.jsonl: line \d is damaged"):
            Journal(path).read(0)
    assert json.loads(whole.splitlines()[0])["sha256"]
