"""Federated, differentially private low-rank fine-tuning of pretrained transformers."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(run: Any) -> Any:
    """Return the classifier of a finished run; see `fedsvd.results.load.load`."""
    from fedsvd.results.load import load as read

    return read(run)
