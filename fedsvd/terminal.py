"""What is printed: it never ends a run, and it never reads data as anything but text."""

import codecs
import contextlib
import io
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TextIO, cast, final

from rich.cells import cell_len

from fedsvd.errors import InputError, RunError

# Controls of a terminal and of the writing direction, line breaks, lone surrogates.
_CONTROLS = ("Cc", "Cs", "Zl", "Zp")
_GAP = re.compile(r" *(?:\S+ )*\S+ {2,}")  # a name and the blanks up to what stands beside it
LOG = logging.getLogger("fedsvd")  # gets what is printed; a run writes it down (fedsvd.logs)
LOG.propagate = False  # the process's own handlers would show it twice
_TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@final
class Output:
    """A text stream whose writes never raise.

    What its encoding lacks is written as a backslash escape. A stream that cannot be written (a
    reader that went away, a full disk, a closed descriptor) is silent from then on.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:
        """The name of the encoding; UTF-8 where the stream takes any text."""
        name = getattr(self._stream, "encoding", None) or "utf-8"
        with contextlib.suppress(LookupError):
            return codecs.lookup(name).name
        return "ascii"

    @property
    def closed(self) -> bool:
        """Whether nothing is written any more."""
        return self._stream is None

    def fit(self, text: str) -> str:
        """Return the text as the stream can write it."""
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding)

    def write(self, text: str) -> int:
        """Write a text and return its length."""
        if self._stream is not None:
            try:
                self._stream.write(self.fit(text))
            except (
                BlockingIOError,
                RuntimeError,
            ):  # a busy reader; a signal in the midst of a write
                pass
            except (OSError, ValueError):
                self._silence()
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Pass on what was written."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (BlockingIOError, RuntimeError):
                pass
            except (OSError, ValueError):
                self._silence()

    def close(self) -> None:
        """Pass on what was written and leave the stream open: it is the process's, not ours.

        A library's log handler that was made within `guarded` closes what it writes to as soon as
        somebody sets up logging anew.
        """
        self.flush()

    def detach(self) -> NoReturn:
        """Refuse: the stream would be of no use to anybody else."""
        raise io.UnsupportedOperation("detach")

    def isatty(self) -> bool:
        """Whether a terminal reads."""
        try:
            return self._stream is not None and self._stream.isatty()
        except (AttributeError, ValueError, OSError):
            return False

    def __getattr__(self, name: str) -> Any:  # fileno, buffer and what else libraries ask for
        if name == "_stream" or self._stream is None:
            raise AttributeError(name)
        return getattr(self._stream, name)

    def _silence(self) -> None:
        """Write nothing any more; a standard stream's rest goes nowhere when the process ends."""
        stream, self._stream = self._stream, None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            descriptor = cast(TextIO, stream).fileno()
            if descriptor in (1, 2):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
                cast(TextIO, stream).flush()


def output(stream: Any) -> Output:
    """Return the stream as one whose writes never raise; None is a stream that is closed."""
    return stream if isinstance(stream, Output) else Output(stream)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Let nothing that is printed within the block raise, whoever prints it.

    Standard descriptors that are closed are opened to nowhere: a file of the run would get their
    numbers, and what libraries print.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # open takes the lowest number that is free
            os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)
    before = sys.stdout, sys.stderr
    ours = output(sys.stdout), output(sys.stderr)
    sys.stdout, sys.stderr = cast(TextIO, ours[0]), cast(TextIO, ours[1])
    try:
        yield
    finally:
        for stream in ours:
            stream.flush()
        sys.stdout, sys.stderr = before


def say(text: str) -> None:
    """Print a text to standard output; it never raises."""
    _print(sys.stdout, text)


def complain(text: str) -> None:
    """Print a text to standard error; it never raises."""
    _print(sys.stderr, text)


def note(line: str) -> None:
    """Log a line that is printed, where a run listens."""
    if line and LOG.isEnabledFor(logging.INFO):
        LOG.info("%s", line)


def _print(stream: Any, text: str) -> None:
    to = output(stream)
    lines = [plain(line) for line in text.split("\n")]
    to.write("\n".join(lines) + "\n")
    to.flush()
    for line in lines:
        note(line)


def status_of(work: Callable[[], object]) -> int:
    """Do the work of a command and return its exit status, after one line about what is wrong.

    0: done; 2: the input is wrong (InputError); 1: it cannot be done (RunError).
    """
    try:
        work()
    except InputError as error:
        complain(f"error: {one_line(str(error))}")
        return 2
    except RunError as error:
        complain(f"error: {one_line(str(error))}")
        return 1
    return 0


def plain(text: str) -> str:
    """Return a text on one line, with what would steer a terminal as backslash escapes."""
    if text.isprintable():
        return text
    return "".join(_escaped(c) if _steers(c) else c for c in text)


def one_line(text: str) -> str:
    """Return a text with a blank for every line break and the blanks around it."""
    return " ".join(filter(None, (line.strip() for line in text.splitlines())))


def as_failure(error: BaseException) -> str:
    """Return an error that nothing foresaw as one line."""
    text = one_line(str(error))[:300]
    return (
        f"a failure of this software: {type(error).__name__}: {text} (FEDSVD_DEBUG=1 shows where)"
    )


def _steers(character: str) -> bool:
    return unicodedata.category(character) in _CONTROLS or character in _TURNS


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def folded(line: str, width: int) -> list[str]:
    """Return a line as lines of at most `width` columns, folded at blanks and never within a word.

    What goes on stands under what it goes on with: behind the first gap of two blanks. A word that
    is wider than a line stays whole, so that a path can be copied.
    """
    if cell_len(line) <= width:
        return [line]
    gap = _GAP.match(line)
    hang = cell_len(gap[0]) if gap else 2
    if hang > width // 2:
        hang = 2
    first, *words = re.findall(r" *\S+", line[gap.end() :] if gap else line)
    lines, held = [], (gap[0] if gap else "") + first
    for word in words:
        if cell_len(held + word) > width:
            lines.append(held)
            held, word = " " * hang, word.strip()
        held += word
    return [*lines, held]


def columns(rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> list[str]:
    """Return rows of equal length as aligned lines; columns are right-aligned but those in `left`.

    Nothing is cut or folded: the widest cell makes its column, and the last one may be long.
    """
    last = len(rows[0]) - 1
    widths = [max(cell_len(row[i]) for row in rows) for i in range(last + 1)]
    lines = []
    for row in rows:
        cells = []
        for i, cell in enumerate(row):
            blank = " " * (widths[i] - cell_len(cell))
            behind = "" if i == last else blank
            cells.append(cell + behind if i in left else blank + cell)
        lines.append("  ".join(cells))
    return lines
