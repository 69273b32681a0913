"""Federated, differentially private low-rank fine-tuning of pretrained transformers."""

from typing import Any

from fedsvd.version import __version__

__all__ = ["__version__", "load"]


def load(run: Any, device: Any = "cpu") -> Any:
    """Return the model of a finished run on a device; see `fedsvd.exports.load.load`."""
    from fedsvd.exports.load import load as read

    return read(run, device)
