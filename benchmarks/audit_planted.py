"""What the audit measures of bugs that are planted in the real code, and which verdicts flag them.

    python -m benchmarks.audit_planted +experiment=dp_eps1 rounds=10

The bugs are those of tests/planted.py.
"""

import argparse
import sys

import pytest

from fedsvd.audit.audit import Options, audit
from fedsvd.composing import settings_of
from fedsvd.errors import InputError
from fedsvd.execute import quiet
from tests import planted

BUGS = (
    planted.no_noise, planted.half_the_noise, planted.twice_the_rate, planted.clipping_left_out,
    planted.clipping_after_the_sum, planted.noise_reused_over_rounds, planted.ledger_reset,
)  # fmt: skip


def main() -> None:
    quiet()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit_planted", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="as of python -m fedsvd.run")
    try:
        settings = settings_of(parser.parse_args().overrides)
    except InputError as error:
        parser.error(str(error))
    print("| bug | mu (se), theory | epsilon of the mechanism, at least | flagged |")
    print("|---|---|---:|---|")
    for bug in (None, *BUGS):
        with pytest.MonkeyPatch.context() as patch:
            if bug is not None:
                bug(patch)
            found = audit(settings, Options(replays=500))
        run = found.figures["pipeline"]
        name = "none" if bug is None else bug.__name__.replace("_", " ")
        flagged = ", ".join(f"{v.name} ({v.part})" for v in found.flagged) or "-"
        mu = f"{run['mu']:.3f} ({run['mu_se']:.3f}), {run['mu_theory']:.3f}"
        print(f"| {name} | {mu} | {found.figures['mechanism']['bound']:.3f} | {flagged} |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
