"""The audit's command line: options, progress, verdicts on the screen and in a file."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsvd.errors import InputError, RunError, one_of, wrong
from fedsvd.terminal import complain, guarded, say

if TYPE_CHECKING:
    from fedsvd.audit.audit import Audit, Options
    from fedsvd.settings import Settings

DESCRIPTION = """Measure whether a configuration gives the privacy that it prints.

    python -m fedsvd.audit +experiment=dp_eps1
    python -m fedsvd.audit +experiment=dp_eps1 privacy.secure_noise=true --figure audit.svg
    python -m fedsvd.audit privacy=client_level clients.number=40 clients.per_round=20

Overrides are those of python -m fedsvd.run. Exit status: 0 nothing is flagged, 1 something is, or the
run failed, 2 the input is wrong. docs/audit.md says how to read the verdicts."""

LIMITS = {
    "canaries": (20, 20_000),
    "replays": (100, 1_000_000),
    "seeds": (1, 1000),
    "rounds": (1, 10**6),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit what the command line says; return the exit status."""
    with guarded():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    given = _parser().parse_args(arguments)
    began = time.perf_counter()
    try:
        _check(given)
        _tell("reading the configuration", began)
        found = _audits(given, began)
    except (InputError, RunError) as error:
        complain(f"error: {error}")
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        return 130
    flagged = sum(bool(a.flagged) for a in found)
    if len(found) > 1:
        say(f"{flagged} of {len(found)} seeds flagged")
    return 1 if flagged else 0


def _tell(text: str, began: float) -> None:
    complain(f"audit [{time.perf_counter() - began:5.1f} s] {text}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m fedsvd.audit", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("overrides", nargs="*", help="of the configuration, as of python -m fedsvd.run")
    add("--canaries", type=int, default=2000, help="in all clients together; default: 2000")
    add("--replays", type=int, default=2000, help="of the mechanism's step; default: 2000")
    add("--rounds", type=int, help="of the watched run; default: all that are configured")
    add("--seeds", type=int, default=1, help="audit this many seeds, from the configured one on")
    add("--part", default="both", help="both, mechanism or pipeline; default: both")
    add("--real-gradients", action="store_true", help="let the clients' own examples train too")
    add("--json", type=Path, metavar="FILE", help="write verdicts, figures and scores")
    add("--figure", type=Path, metavar="FILE", help="draw scores and bounds as .svg or .png")
    return parser


def _check(given: argparse.Namespace) -> None:
    """Raise InputError for options out of their range, before anything slow is imported."""
    for name, (low, high) in LIMITS.items():
        value = getattr(given, name)
        if value is not None and not low <= value <= high:
            raise wrong(f"--{name}", value, f"from {low} to {high}")
    if given.part not in ("both", "mechanism", "pipeline"):
        raise one_of("--part", given.part, ("both", "mechanism", "pipeline"))
    for option, path in (("--json", given.json), ("--figure", given.figure)):
        if path is not None and not path.absolute().parent.is_dir():
            raise wrong(option, str(path), "a file in a folder that exists")
    if given.figure is not None and given.figure.suffix not in (".svg", ".png"):
        raise wrong("--figure", str(given.figure), "a name that ends in .svg or .png")


def _audits(given: argparse.Namespace, began: float) -> "list[Audit]":
    sys.path.insert(0, str(Path.cwd()))  # so that strategy._target_=my_lab.MyStrategy is found
    from omegaconf import OmegaConf

    from fedsvd.composing import compose
    from fedsvd.config import from_config

    composed: Any = OmegaConf.to_container(compose(given.overrides), resolve=True)
    settings = from_config(composed)

    from fedsvd.audit.audit import Options, audit, check_audited
    from fedsvd.execute import quiet

    quiet()
    options = Options(given.canaries, given.replays, given.rounds, given.part, given.real_gradients)
    check_audited(settings, options)
    found = []
    for i in range(given.seeds):
        chosen = replace(settings, seed=settings.seed + i)
        found.append(audit(chosen, options, lambda text: _tell(text, began)))
        say(told(found[-1], chosen, options))
        _write(given, found)
    return found


def _write(given: argparse.Namespace, found: "list[Audit]") -> None:
    """Write the files that were asked for; the figure is of the first seed."""
    from fedsvd.audit.figure import write_figure
    from fedsvd.files import write_text

    if given.json is not None:
        values = {"overrides": given.overrides, "audits": [a.as_dict() for a in found]}
        write_text(given.json, json.dumps(values, indent=1) + "\n")
    if given.figure is not None and len(found) == 1:
        write_figure(given.figure, found[0])


def told(found: "Audit", settings: "Settings", options: "Options") -> str:
    """Return the verdicts as text, a line or two a property."""
    lines = [f"seed {settings.seed}"]
    for part in ("mechanism", "pipeline"):
        verdicts = [v for v in found.verdicts if v.part == part]
        if verdicts:
            lines.append(part)
        for v in verdicts:
            word = {None: "n/a", False: "ok", True: "FLAG"}[v.flagged]
            lines.append(f"  {word:<5} {v.name}: {v.measured}")
            lines.append(f"        {v.theory}")
    flagged = found.flagged
    if flagged:
        names = ", ".join(f"{v.name} ({v.part})" for v in flagged)
        lines.append(f"FLAGGED: {names}. The code does not do what is planned.")
    else:
        lines.append("Nothing is flagged: what was measured agrees with the plan.")
    return "\n".join(lines)
