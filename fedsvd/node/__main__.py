"""What the owner of a node does with its policy and its account.

    python -m fedsvd.node init POLICY                  make the account that the policy names, empty
    python -m fedsvd.node show POLICY [--events]       what every data set has spent
    python -m fedsvd.node check POLICY [OVERRIDE ...]  whether a server's overrides are within it
    python -m fedsvd.node serve ARGUMENTS ...          flower-supernode, running this fedsvd alone

Exit status: 0 done, 2 the policy, the account or the overrides are wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fedsvd.errors import InputError, RunError
from fedsvd.node import account
from fedsvd.node.policy import Policy, read_policy
from fedsvd.terminal import complain, guarded, one_line, say


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["serve"]:
        from fedsvd.node.serve import serve

        return serve(given[1:])
    with guarded():
        return _told(given)


def _told(given: Sequence[str]) -> int:
    told = _parser().parse_args(given)
    try:
        policy = read_policy(Path(told.policy))
        say(ACTIONS[told.action](policy, told))
    except (InputError, RunError) as error:
        complain(f"fedsvd.node: {one_line(str(error))}")
        return 2
    return 0


def init(policy: Policy, told: argparse.Namespace) -> str:
    """Make the account and say where it is."""
    path = _ledger(policy)
    account.create(path)
    return f"{path}: an empty account"


def show(policy: Policy, told: argparse.Namespace) -> str:
    """Return the account as a table; its last line is about this policy's data."""
    path, own = _ledger(policy), policy.privacy
    assert own.epsilon is not None
    assert own.delta is not None
    charges = account.read(path)
    lines = [
        f"{path}: {len(charges)} trainings; epsilon at delta {own.delta:g} by {own.accountant}"
    ]
    names = sorted({c.data for c in charges} | {policy.id})
    lines.append(f"{'data':<30} {'trainings':>9} {'steps':>7} {'runs':>5} {'epsilon':>9}")
    for name in names:
        contents = [c.content for c in charges if c.data == name]
        found = account.related(charges, name, contents[-1] if contents else "")
        cost = account.spent(found, own.delta, own.accountant).epsilon
        steps, runs = sum(c.steps for c in found), len({c.run for c in found})
        lines.append(f"{name:<30} {len(found):>9} {steps:>7} {runs:>5} {cost:>9.4f}")
        if name == policy.id:
            left = f"{policy.id}: {cost:.4f} of epsilon {own.epsilon:g} is spent"
    if told.events:
        lines += [
            f"{c.time}  {c.data}  run {c.run} round {c.round}: {c.steps} steps, noise multiplier "
            f"{c.noise_multiplier:.6g}, sample rate {c.sample_rate:.6g}"
            for c in charges
        ]
    return "\n".join([*lines, left])


def check(policy: Policy, told: argparse.Namespace) -> str:
    """Return the noise and the cost of a run with these overrides; InputError if it is refused."""
    from fedsvd.node.proposal import proposal
    from fedsvd.node.rules import check_noise, settings_under
    from fedsvd.privacy.plan import make_plan

    found = proposal(told.overrides)
    settings = settings_under(policy, found, told.partition_id)
    planned = make_plan(settings, [0] * settings.clients.number).clients[told.partition_id]
    if policy.privacy.unit == "example":
        check_noise(policy, planned.noise_multiplier, planned.sample_rate)
    return (
        f"allowed: at most {planned.rounds_bound} trainings of {settings.training.local_steps} steps "
        f"with noise multiplier {planned.noise_multiplier:.4g} at sample rate "
        f"{planned.sample_rate:.4g}"
    )


ACTIONS = {"init": init, "show": show, "check": check}


def _ledger(policy: Policy) -> Path:
    if policy.ledger is None or policy.privacy.unit != "example":
        raise InputError("the policy: protects nothing (privacy.unit: none), and has no account")
    return Path(policy.ledger)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m fedsvd.node",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True)
    for name, action in ACTIONS.items():
        one = actions.add_parser(name, help=action.__doc__)
        one.add_argument("policy", help="the policy's file")
        if name == "show":
            one.add_argument("--events", action="store_true", help="every training too")
        if name == "check":
            one.add_argument("--partition-id", type=int, default=0, help="of this node; default 0")
            one.add_argument("overrides", nargs="*", help="as a server would send them")
    return parser


if __name__ == "__main__":
    sys.exit(main())
