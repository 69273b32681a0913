"""The one kind of error that means: the input is wrong, nothing was done."""

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """A configuration, file, checkpoint or class given by the user cannot be used.

    The message is one line that names the key or file, what was found and what is allowed.
    `python -m fedsvd.run` prints it and exits with status 2.

    Attributes:
        key: the name of the key, if the error is about one key.
        allowed: a phrase on the values that the key takes.
    """

    def __init__(self, message: str = "", key: str = "", allowed: str = "") -> None:
        super().__init__(message)
        self.key, self.allowed = key, allowed


class TrialsFailed(Exception):
    """Trials of a sweep failed; others may be complete.

    Attributes:
        status: the exit status of the command: 1, or 2 if every trial was refused.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def wrong(key: str, value: object, allowed: str) -> InputError:
    """Return the error for `key` whose `value` is not `allowed` (a phrase after "must be")."""
    return InputError(f"{key}: {value!r} is not allowed; it must be {allowed}", key, allowed)


def one_of(key: str, value: object, names: Iterable[str]) -> InputError:
    """Return the error for a name outside `names`, with the nearest valid one."""
    names = sorted(names)
    hint = nearest(str(value), names)
    meant = f" (did you mean {hint!r}?)" if hint else ""
    listed = ", ".join(names)
    message = f"{key}: {value!r} is not allowed{meant}; choose from {listed}"
    return InputError(message, key, listed)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the member of `names` most like `name`, or None if none is alike."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return found[0] if found else None


class RunError(Exception):
    """A run cannot go on, for a reason outside its input; the message is one line.

    `python -m fedsvd.run` prints it and exits with status 1.
    """


class StorageError(RunError):
    """A file of the run cannot be written: a full disk, a folder that is read-only."""


class TooFewReplies(RunError):
    """A round had fewer valid replies than `faults.min_replies`."""


class ClientsFailed(RunError):
    """The software of every client of a round failed, for one reason."""


class NothingTrained(RunError):
    """A run came to its end, and nothing had trained."""
