"""The version of the package, and of the libraries whose versions change a run's bits."""

import platform
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"
LIBRARIES = (
    "torch", "flwr", "opacus", "dp-accounting", "transformers", "peft", "numpy", "hydra-core", "ray"
)  # fmt: skip


def version_text() -> str:
    """Return the version on a line, then Python's and the libraries', without importing them."""
    return "\n".join(f"{name} {found}" for name, found in versions().items())


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of the libraries, without importing them."""
    found = {"fedsvd": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "is not installed"
    return found
