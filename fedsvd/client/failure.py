"""What a client says when its software fails."""

import traceback
from pathlib import Path

from flwr.app import ConfigRecord

from fedsvd.engines.inline import DeadlinePassed
from fedsvd.records import CAUSE, FAILED


def failure(error: Exception, steps: int, diagnostics: bool) -> ConfigRecord:
    """Return the report of a client that took so many steps before the error.

    Type, message and place with `diagnostics`, and the type alone without: messages can quote data,
    and where an error comes from can depend on them. A deadline that passed is no failure of software
    and has no cause.
    """
    kind = type(error).__name__
    said = "".join(traceback.format_exception_only(error)).strip() if diagnostics else kind
    report = ConfigRecord({"steps": steps, FAILED: said})
    if not isinstance(error, DeadlinePassed):
        report[CAUSE] = f"{kind} at {place(error)}" if diagnostics else kind
    return report


def place(error: Exception) -> str:
    """Return file and line of the innermost frame in this package, or else of the innermost one."""
    root = Path(__file__).resolve().parents[1]
    frames = [(Path(f.filename), f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    own = [(p.relative_to(root.parent), line) for p, line in frames if root in p.parents]
    path, line = own[-1] if own else (Path(frames[-1][0].name), frames[-1][1])
    return f"{path.as_posix()}:{line}"
