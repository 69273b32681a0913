"""The version of the package, and those of what its figures depend on."""

import platform
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"

LIBRARIES = ("torch", "transformers", "peft", "opacus", "flwr", "dp-accounting", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of the libraries that it computes with."""
    found = {"python": platform.python_version(), "fedsvd": __version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
