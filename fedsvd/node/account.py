"""The account of a node: every event that its data were used in, over runs, servers and restarts.

It is a file on the node's disk, replaced whole, fsynced before the node trains, with the SHA-256 of
what it holds, so that a damaged one is found. Only its owner makes one (`init`): one that is missing
or damaged is never begun again at zero.
"""

import fcntl
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fedsvd.errors import InputError
from fedsvd.files import write_bytes
from fedsvd.node.policy import check_mode
from fedsvd.node.refusals import Refusal, Refused
from fedsvd.privacy.accounting import Cost, Event, cost

VERSION = 1
MODE = 0o600
MOST_KINDS = 64  # different (noise multiplier, sample rate): what accountants take long for


@dataclass(frozen=True)
class Charge:
    """What one training of a node may at most release: `steps` subsampled Gaussian steps.

    `data` is the owner's name for the data, `content` a digest of them. The rest says when and for
    whom; it enters no sum.
    """

    data: str
    content: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    run: str
    round: int
    time: str

    @property
    def event(self) -> Event:
        """What accountants compose."""
        return self.noise_multiplier, self.sample_rate, self.steps


def content_digest(rows: Sequence[tuple[tuple[str, ...], str]]) -> str:
    """Return the SHA-256 of the set of (texts, label): not of their order, nor of where they lie."""
    each = sorted({hashlib.sha256(json.dumps(row).encode()).hexdigest() for row in rows})
    return hashlib.sha256("\n".join(each).encode()).hexdigest()


def create(path: Path) -> None:
    """Make an empty account; InputError if anything is there already."""
    if path.exists() or path.is_symlink():
        raise InputError(f"{path}: is there already; an account is never begun again")
    with locked(path):
        _write(path, ())


def read(path: Path) -> tuple[Charge, ...]:
    """Return the charges of an account, in order.

    Raises InputError if the file is missing, is a link to another, lets others in, is damaged or
    holds what is no charge.
    """
    if path.is_symlink():  # replacing it would leave the file that it names as it was
        raise InputError(f"{path}: is a symbolic link; the policy must name the account itself")
    check_mode(path, others=stat.S_IRWXG | stat.S_IRWXO, allowed="chmod 600")
    damaged = InputError(
        f"{path}: is damaged; nothing trains until its owner puts a whole copy in its place"
    )
    try:
        held = json.loads(path.read_bytes(), parse_constant=_refuse)
        charges = tuple(_charge(one) for one in held["charges"])
        whole = held == _document(charges)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged from error
    if not whole:
        raise damaged
    return charges


def related(charges: Sequence[Charge], data: str, content: str) -> list[Charge]:
    """Return the charges on these data: of their name or their content, or of what shares either.

    So neither a new name for the same rows nor new rows under the same name begins at zero.
    """
    names, contents, found = {data}, {content}, -1
    while found != len(names) + len(contents):
        found = len(names) + len(contents)
        for one in charges:
            if one.data in names or one.content in contents:
                names.add(one.data)
                contents.add(one.content)
    return [one for one in charges if one.data in names]


def spent(charges: Sequence[Charge], delta: float, accountant: str) -> Cost:
    """Return what the composition of the charges costs at `delta`."""
    return cost([one.event for one in charges], delta, accountant)


def charge(path: Path, new: Charge, epsilon: float, delta: float, accountant: str) -> float:
    """Enter `new` before it is spent and return the epsilon spent with it; on disk when it returns.

    Raises Refused if the data's epsilon at `delta` would exceed `epsilon`, and InputError if the
    account cannot be used. One process at a time is between reading and writing.
    """
    with locked(path):
        before = read(path)
        of_data = [*related(before, new.data, new.content), new]
        if len({(c.noise_multiplier, c.sample_rate) for c in of_data}) > MOST_KINDS:
            raise Refused(
                Refusal.SPENT, f"{path}: more than {MOST_KINDS} different noises and rates"
            )
        after = spent(of_data, delta, accountant)
        if not after.epsilon <= epsilon:
            raise Refused(
                Refusal.SPENT,
                f"{path}: {new.data!r} would have spent epsilon {after.epsilon:.6g} at delta "
                f"{delta:g}; its policy allows {epsilon:g}",
            )
        _write(path, (*before, new))
    return after.epsilon


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the account's lock, a file beside it, against every other process of this node."""
    beside = path.with_name(f".{path.name}.lock")
    try:
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, MODE)
    except OSError as error:
        raise InputError(f"{beside}: cannot be opened: {error.strerror or error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, charges: Sequence[Charge]) -> None:
    text = json.dumps(_document(charges), indent=1) + "\n"
    write_bytes(path, text.encode(), MODE)


def _document(charges: Sequence[Charge]) -> dict[str, Any]:
    entries = [asdict(one) for one in charges]
    text = json.dumps([VERSION, entries], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"version": VERSION, "charges": entries, "sha256": digest}


def _charge(values: Any) -> Charge:
    """Return the charge that a file holds; ValueError, KeyError or TypeError if it is none."""
    found = Charge(**values)
    for one in fields(Charge):
        kind: Any = (int, float) if one.type is float else one.type
        value = getattr(found, one.name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(one.name)
    sigma, rate, steps = found.event
    if not (0 < sigma < math.inf and 0 < rate <= 1 and steps >= 1):
        raise ValueError("no event")
    if not re.fullmatch(r"[0-9a-f]{64}", found.content):
        raise ValueError("content")
    return found


def _refuse(constant: str) -> float:
    raise ValueError(constant)
