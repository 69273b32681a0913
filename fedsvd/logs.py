"""run.log: what a run prints and what libraries log, with times, in the run folder."""

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, final

from fedsvd.terminal import LOG
from fedsvd.version import version_text

NAME = "run.log"
FORMAT = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"  # Hydra's


@final
class RunLog(logging.Handler):
    """Keeps records until it knows the run's folder, then appends them to `NAME` there.

    A run that is refused leaves no file. A disk that cannot be written ends the file, not the run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(FORMAT))
        self._kept: list[str] | None = []
        self._file: TextIO | None = None

    def begin(self, folder: Path) -> None:
        """Write what was kept, and from now on every record at once."""
        kept, self._kept = self._kept or [], None
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / NAME).open("a", encoding="utf-8", errors="backslashreplace")
            self._file.writelines(kept)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or keep it."""
        if self._kept is None and self._file is None:
            return
        line = self.format(record) + "\n"
        if self._kept is not None:
            self._kept.append(line)
        elif self._file is not None:
            try:
                self._file.write(line)
                self._file.flush()
            except (OSError, ValueError):
                self._file = None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError):
                self._file.close()
        self._kept = self._file = None
        super().close()


@contextlib.contextmanager
def logged(verbose: bool = False) -> Iterator[RunLog]:
    """Log to the yielded handler what is printed in the block and what any logger says.

    With `verbose` (hydra.verbose) standard error shows the loggers' records too, of the levels
    that Hydra has set. Otherwise it shows warnings, as without any handler, unless the process has
    handlers of its own. What ends the block is logged, with its place where it is not a RunError or
    an InputError.
    """
    root, log = logging.getLogger(), RunLog()
    level = LOG.level
    LOG.setLevel(min(LOG.getEffectiveLevel(), logging.INFO))
    added: list[tuple[logging.Logger, logging.Handler]] = [(LOG, log), (root, log)]
    if verbose or not root.handlers:
        shown = logging.StreamHandler(sys.stderr)
        shown.setLevel(logging.NOTSET if verbose else logging.WARNING)
        shown.setFormatter(logging.Formatter(FORMAT if verbose else "%(message)s"))
        # What is printed is on the screen already; of ours only what is not printed is added.
        shown.addFilter(lambda record: record.name != LOG.name or record.levelno < logging.INFO)
        added += [(root, shown), (LOG, shown)]
    for logger, handler in added:
        logger.addHandler(handler)
    LOG.debug("%s", version_text().replace("\n", ", "))
    try:
        yield log
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        if type(error).__module__ != "fedsvd.errors":
            # As text: a handler that keeps records must not keep the model in the traceback's frames.
            told += "\n" + "".join(traceback.format_exception(error)).rstrip()
        LOG.error("%s", told)
        raise
    finally:
        for logger, handler in added:
            logger.removeHandler(handler)
            handler.close()
        LOG.setLevel(level)


def verbose_in_hydra(name: str | None = None) -> bool:
    """Return whether `hydra.verbose` asks for anything, or for the logger of this name."""
    from hydra.core.hydra_config import HydraConfig

    given = HydraConfig.get().verbose if HydraConfig.initialized() else False
    if name is None or isinstance(given, bool):
        return bool(given)
    return name == given if isinstance(given, str) else name in given
