"""The command `fedsvd`, and `python -m fedsvd`: a word for each command of the package."""

import importlib
import sys
from collections.abc import Sequence

from fedsvd.errors import one_of
from fedsvd.terminal import columns, complain, guarded, say
from fedsvd.version import version_text

# The module of each command, and what it does.
COMMANDS = {
    "run": ("fedsvd.run", "one run, or with -m a sweep; --help names every key"),
    "results": ("fedsvd.results.__main__", "tables, figure and report of finished runs"),
    "privacy": ("fedsvd.privacy.__main__", "epsilon of a noise, or the noise for an epsilon"),
    "audit": ("fedsvd.audit.__main__", "measure whether a configuration gives its privacy"),
    "tasks": ("fedsvd.tasks.__main__", "prepare benchmark data and small models"),
    "node": ("fedsvd.node.__main__", "a data owner's policy and account in a deployment"),
}
HELP = """usage: fedsvd COMMAND ...

{commands}

fedsvd COMMAND --help says more; fedsvd --version names the libraries too.
Each command is also a module: python -m fedsvd.run, and so on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the first word says with the rest; return the exit status, 2 for an unknown word."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    word, rest = (given or ["--help"])[0], given[1:]
    if word in COMMANDS:
        status: int = importlib.import_module(COMMANDS[word][0]).main(rest)
        return status
    with guarded():
        if word in ("--help", "-h", "help"):
            rows = [("  " + name, told) for name, (_, told) in COMMANDS.items()]
            say(HELP.format(commands="\n".join(columns(rows, left=(0, 1)))))
        elif word == "--version":
            say(version_text())
        else:
            complain(f"error: {one_of('fedsvd', word, COMMANDS)}")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
