"""Work that was done before a run was interrupted: found in the journal, done again or charged."""

import hashlib
from collections.abc import Sequence

from fedsvd.rounds.journal import Entry
from fedsvd.rounds.run import Run


def entered(run: Run, number: int, drawn: list[int]) -> Entry | None:
    """Enter an attempt into the journal, or find it there from before the run was interrupted.

    What is found is done again with the same streams, if it starts from the same bits: the same
    release once more tells nothing new. Anything else that was done counts as spent, the next attempt
    draws from other streams, and None asks for another draw.
    """
    position = _position(run)
    before = run.journal.of_round(number)
    same = [
        e for e in before if (e.attempt, e.position, e.clients) == (run.attempt, position, drawn)
    ]
    if same and not run.worker.plan.secure_noise:
        return same[0]
    if before:
        run.attempt = max(run.attempt, *(e.attempt + 1 for e in before))
        charge(run, before)
        return None
    entry = Entry(number, run.attempt, position, drawn, run.worker.plan.steps_per_round)
    run.journal.asked(entry)
    return entry


def charge(run: Run, entries: Sequence[Entry]) -> None:
    """Enter into the ledger what was done before the run was interrupted and is not done again."""
    for entry in entries:
        taken = {int(k): n for k, n in (entry.taken or {}).items()}
        run.ledger.record_round(entry.round, entry.clients, taken)
        for client in entry.clients:
            run.rounds_taken[client] += 1
    run.journal.settle(entries)


def _position(run: Run) -> str:
    """Return a digest of all that a round's releases depend on, beside settings and streams."""
    sha = hashlib.sha256(run.state.digest().encode())
    for client, state in run.grid.states().items():
        for name, record in sorted(state.array_records.items()):
            for key, array in record.items():
                sha.update(f"|{client}|{name}|{key}|".encode() + array.data)
    sha.update(repr((run.rounds_taken, run.client_level)).encode())
    return sha.hexdigest()
