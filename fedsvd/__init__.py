"""Federated, differentially private low-rank fine-tuning of pretrained transformers.

    import fedsvd

    done = fedsvd.run("+experiment=quickstart", rounds=2)   # done.summary, done.history, done.clients
    table = fedsvd.sweep("+experiment=quickstart", {"seed": [0, 1]})
    table = fedsvd.results("multirun/2026-01-01/12-00-00")
    model = fedsvd.load(done.folder)

Importing this package imports nothing heavy; each name is looked up when it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedsvd.version import __version__

if TYPE_CHECKING:
    from fedsvd.results import results as results
    from fedsvd.run import run as run
    from fedsvd.sweep import sweep as sweep

__all__ = ["__version__", "load", "results", "run", "sweep"]


def load(run: Any, **options: Any) -> Any:
    """Return the model of a finished run.

    `run` is its folder. `fedsvd.exports.load.load` has the options and the errors.
    """
    from fedsvd.exports.load import load as read

    return read(run, **options)


def __getattr__(name: str) -> Any:
    """Return `run`, `sweep` or `results`: modules that can be called (fedsvd.callables)."""
    if name in ("run", "sweep", "results"):
        return import_module(f"fedsvd.{name}")
    raise AttributeError(f"module 'fedsvd' has no attribute {name!r}")
