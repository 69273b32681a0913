"""python -m fedsvd.exports RUN_DIR [--out FOLDER] [--push-to-hub OWNER/NAME] [--public].

Writes RUN_DIR/transformers (or FOLDER): the run as Transformers' own classifier, which
pipeline("text-classification") loads; and uploads it, or the adapter where there is none.
Exit status: 0 done, 2 the input is wrong, 1 a failure.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from fedsvd.errors import InputError
from fedsvd.exports.card import CARD
from fedsvd.exports.load import LoadedClassifier, load
from fedsvd.exports.publish import TRANSFORMERS, publish
from fedsvd.exports.sequence import to_transformers
from fedsvd.terminal import guarded, say, status_of

SUMMARY = "summary.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m fedsvd.exports", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="RUN_DIR/transformers without")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="a repository of the hub")
    parser.add_argument("--public", action="store_true", help="a public repository")
    with guarded():
        given = parser.parse_args(arguments)
        return status_of(lambda: _export(given.run, given.out, given.push_to_hub, given.public))


def _export(run: Path, out: Path | None, repository: str | None, public: bool) -> None:
    try:
        say(f"written: {write(run, out or run / TRANSFORMERS)}")
    except InputError as error:
        if repository is None:
            raise
        say(f"{error}; the adapter is published as it is")
    for line in which(run):
        say(line)
    if repository is not None:
        say(f"published: {publish(run, repository, private=not public)}")


def which(run: Path) -> list[str]:
    """Return a line that says which model is exported, where the run's figures are of another one."""
    try:
        told = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    evaluated, exported = told.get("evaluated"), told.get("exported")
    if exported is None or evaluated == exported:
        return []
    return [f"which model: {exported}; the run's own figures are of {evaluated}"]


def write(run: Path, out: Path) -> Path:
    """Write a finished run as Transformers' own classifier, with its card; InputError."""
    loaded = load(run)
    if not isinstance(loaded, LoadedClassifier):
        raise InputError(
            f"{run}: is a language model; AutoModelForCausalLM loads its base, and PEFT its adapter/"
        )
    to_transformers(loaded, out)
    for held in ("adapter", "merged"):
        if (run / held / CARD).is_file():
            shutil.copyfile(run / held / CARD, out / CARD)
    return out


if __name__ == "__main__":
    sys.exit(main())
