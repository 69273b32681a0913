"""The version of the package, and of the libraries whose versions change a run's bits."""

import platform

__version__ = "0.1.0"
LIBRARIES = ("torch", "flwr", "opacus", "transformers", "peft", "hydra-core", "ray")


def version_text() -> str:
    """Return the version on a line, then Python's and the libraries', without importing them."""
    from importlib.metadata import PackageNotFoundError, version

    lines = [f"fedsvd {__version__}", f"python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name} is not installed")
    return "\n".join(lines)
