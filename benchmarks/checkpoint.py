"""python -m benchmarks.checkpoint: what a checkpoint and the journal of a round cost.

Baseline: safetensors' own save of the same tensors, without checksum, fsync or rename.
"""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.common import interleaved, machine, table
from fedsvd.checkpoints.checkpoint import read_whole, write_checkpoint
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.rounds.journal import Entry, Journal


def main() -> None:
    # 24 layers of RoBERTa-large, query and value, rank 8: 3.1 MB of factors.
    layers = [f"layer{i}.{name}" for i in range(24) for name in ("query", "value")]
    state = AdapterState({n: LowRank(torch.randn(8, 1024), torch.randn(1024, 8)) for n in layers})
    facts = {"events": {str(k): [{"round": n, "steps": 10} for n in range(50)] for k in range(6)}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        journal = Journal(folder / "journal.jsonl")
        entry = Entry(1, 0, "0" * 64, [0, 2, 4], 10)

        def plain() -> None:
            save_file(state.tensors(), folder / "plain.safetensors")

        def whole() -> None:
            write_checkpoint(folder / "whole.safetensors", state, facts=facts)

        def lines() -> None:
            journal.asked(entry)
            journal.replied(entry, {}, {0: 10, 2: 10, 4: 10})

        def read() -> None:
            read_whole(folder / "whole.safetensors")

        variants = {"plain save": plain, "checkpoint": whole, "journal": lines, "read back": read}
        seconds = interleaved(variants, 51)
        sizes = [(folder / f"{n}.safetensors").stat().st_size / 1e6 for n in ("plain", "whole")]
    print(machine())
    print(f"plain {sizes[0]:.2f} MB, checkpoint {sizes[1]:.2f} MB")
    table("A round's checkpoint, 48 layers of 1024, rank 8", seconds, "plain save")


if __name__ == "__main__":
    main()
