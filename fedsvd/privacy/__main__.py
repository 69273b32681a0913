"""Epsilon of a noise multiplier, or the noise multiplier for an epsilon, without a run.

    python -m fedsvd.privacy --sample-rate 0.1125 --steps 50 --delta 1e-5 --epsilon 1
    python -m fedsvd.privacy --examples 1137 --batch-size 128 --steps 50 --noise-multiplier 1.6

Every accountant is asked, side by side; one that fails is named with its reason and with who stands
in. Whatever is asked, the answer takes seconds and less than 1 GB. For Gaussian noise without
sampling (client-level privacy where it is known who takes part) give --sample-rate 1 and the number
of rounds as --steps. With --mean-of M the last column is the epsilon against someone who sees only
the published model, if M equal clients of a round are averaged, each after --local-steps steps, and
the server and the other clients are honest (docs/published_model.md). With --made-for RATE STEPS the
noise is the least for STEPS steps at RATE, as a published recipe assumes, and epsilon is what --steps
at --sample-rate spend with it (docs/paper.md).
"""

import argparse
import math
import sys
import warnings
from collections.abc import Sequence

from fedsvd.errors import InputError, one_of, wrong
from fedsvd.privacy.accounting import ACCOUNTANTS, cost
from fedsvd.privacy.calibration import noise_multiplier
from fedsvd.terminal import complain, guarded, one_line, say


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer on standard output; return 0, or 2 after one line about what is wrong."""
    with guarded():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    given = _parser().parse_args(arguments)
    try:
        _check(given)
        say(answer(given))
    except InputError as error:
        complain(f"fedsvd.privacy: {one_line(str(error))}")
        return 2
    return 0


def answer(given: argparse.Namespace) -> str:
    """Return the table for checked arguments; InputError if no accountant has an answer."""
    rate = given.sample_rate
    if rate is None:
        rate = min(1.0, given.batch_size / given.examples)
    names = list(ACCOUNTANTS) if given.accountant is None else [given.accountant]
    lines = [f"{given.steps} steps at sample rate {rate:.6g}, delta {given.delta:g}", ""]
    lines.append(f"{'accountant':<12}{'noise multiplier':>18}{'epsilon':>12}")
    if given.mean_of is not None:
        lines[-1] += f"{'published':>12}"
    failures = []
    for name in names:
        try:
            lines.append(_row(given, rate, name))
        except InputError as error:
            failures.append(error)
            lines.append(f"{name:<12}{'-':>18}{'-':>12}  (no noise multiplier up to 1e6 is enough)")
    if len(failures) == len(names):
        raise InputError(str(failures[0]).replace("privacy.epsilon", "--epsilon", 1))
    return "\n".join(lines)


def _row(given: argparse.Namespace, rate: float, name: str) -> str:
    """Return an accountant's row, which says who answered in its place and why."""
    sigma = given.noise_multiplier
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the row says what the warnings say
        if sigma is None:
            made_for, steps = given.made_for or (rate, given.steps)
            sigma = noise_multiplier(given.epsilon, given.delta, made_for, int(steps), name)
        spent = cost([(sigma, rate, given.steps)], given.delta, name)
        published = ""
        if given.mean_of is not None:
            last = given.steps // given.local_steps
            joint = sigma * math.sqrt(given.mean_of)
            events = [(sigma, rate, given.steps - last), (joint, rate, last)]
            published = f"{cost(events, given.delta, name).epsilon:>12.6g}"
    said = "".join(f"  ({who} failed: {why})" for who, why in spent.failed)
    if spent.failed:
        said += f"  ({spent.accountant}'s bound)"
    elif spent.accountant != name:
        said = "  (closed form)"
    return f"{name:<12}{sigma:>18.6g}{spent.epsilon:>12.6g}{published}{said}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m fedsvd.privacy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--sample-rate", type=float, help="probability that an example is in a step's batch")
    add("--examples", type=int, help="n; with --batch-size in place of --sample-rate")
    add("--batch-size", type=float, help="expected batch; the rate is batch size / examples")
    add("--steps", type=int, required=True, help="most steps of one client (rounds x local steps)")
    add("--delta", type=float, default=1e-5, help="default: 1e-5")
    add("--epsilon", type=float, help="target: the least noise multiplier is found")
    told = "with --epsilon: what the noise is for, if not for --sample-rate and --steps"
    add("--made-for", type=float, nargs=2, metavar=("RATE", "STEPS"), help=told)
    add("--noise-multiplier", type=float, help="given: its epsilon is found")
    add("--mean-of", type=int, help="clients of a round whose states are averaged")
    add("--local-steps", type=int, default=1, help="of each client in a round; default: 1")
    add("--accountant", help=f"one of {', '.join(ACCOUNTANTS)}; default: all")
    return parser


def _check(given: argparse.Namespace) -> None:
    by_counts = given.examples is not None or given.batch_size is not None
    if (given.sample_rate is None) != by_counts:
        raise InputError("--sample-rate: give either it, or --examples and --batch-size")
    if by_counts and (given.examples is None or given.batch_size is None):
        raise InputError("--examples, --batch-size: both are needed for a rate")
    if (given.epsilon is None) == (given.noise_multiplier is None):
        raise InputError("--epsilon, --noise-multiplier: give one of the two")
    if given.made_for is not None:
        rate, steps = given.made_for
        if given.epsilon is None or not 0 < rate <= 1 or not 1 <= steps < 1e9 or steps % 1:
            raise wrong(
                "--made-for", given.made_for, "a rate in (0, 1] and a whole number, with --epsilon"
            )
    if given.sample_rate is not None and not 0 < given.sample_rate <= 1:
        raise wrong("--sample-rate", given.sample_rate, "above 0 and at most 1")
    if not 0 < given.delta < 1:
        raise wrong("--delta", given.delta, "between 0 and 1")
    if given.accountant is not None and given.accountant not in ACCOUNTANTS:
        raise one_of("--accountant", given.accountant, ACCOUNTANTS)
    if given.local_steps < 1 or given.steps % given.local_steps:
        raise wrong("--local-steps", given.local_steps, f"a divisor of --steps={given.steps}")
    for name in ("steps", "mean_of", "examples", "batch_size", "epsilon", "noise_multiplier"):
        value = getattr(given, name)
        if value is not None and not 0 < value < float("inf"):
            raise wrong(f"--{name.replace('_', '-')}", value, "a number above 0")


if __name__ == "__main__":
    sys.exit(main())
