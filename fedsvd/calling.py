"""What surrounds a run that is a function's call: the process stays as it was, errors are raised."""

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Iterator

from fedsvd import interrupt
from fedsvd.errors import InputError, RunError, TrialsFailed
from fedsvd.terminal import complain, guarded, one_line

# Set where they are not: Hydra would print its own shortened traceback; nothing is sent or asked.
ENVIRONMENT = {
    "HYDRA_FULL_ERROR": "1", "FLWR_TELEMETRY_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip
_BUSY = threading.Lock()  # Hydra's state, PyTorch's threads and the signals are the process's


@contextlib.contextmanager
def called(show: bool = True) -> Iterator[None]:
    """Let a run or a sweep in the block be the call of a function.

    At the end everything of the process is as it was (fedsvd.surroundings). InputError, RunError
    and TrialsFailed come out with their one-line message. Ctrl-C finishes the round, then
    KeyboardInterrupt says how to go on; SIGTERM likewise, with SystemExit(143). Without `show` the
    standard output stays empty. RunError if the process is busy with a run.
    """
    from fedsvd.surroundings import as_found  # PyTorch is slow to import

    if not _BUSY.acquire(blocking=False):
        raise RunError("this process is busy with a run; runs of one process go one after another")
    try:
        with contextlib.ExitStack() as around:
            around.enter_context(as_found())
            if not show:
                around.enter_context(contextlib.redirect_stdout(io.StringIO()))
            around.enter_context(guarded())
            set_environment()
            # A line of tqdm's for every notebook without widgets; there are no bars of its.
            warnings.filterwarnings("ignore", message="IProgress not found")
            with interrupt.listening():
                yield
    except (InputError, RunError, TrialsFailed) as error:
        if not isinstance(error, TrialsFailed):
            error.args = (one_line(str(error)),)
        if os.environ.get("FEDSVD_DEBUG") != "1":  # Hydra's chain of causes says nothing more
            error.__cause__, error.__suppress_context__ = None, True
        raise
    except interrupt.Interrupted as stop:
        if stop.status == 143:
            complain(str(stop))
            raise SystemExit(stop.status) from None
        raise KeyboardInterrupt(str(stop)) from None
    finally:
        _BUSY.release()


def set_environment() -> None:
    """Set what libraries read from the environment, unless somebody did."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
