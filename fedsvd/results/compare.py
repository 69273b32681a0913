"""Figures of groups of runs: means, their confidence intervals, paired differences."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from scipy.special import stdtrit  # scipy.stats takes a second to import

from fedsvd.errors import InputError, one_of
from fedsvd.objectives.metric import Metric
from fedsvd.results.collect import TEST, Group, metric_of_groups


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds; `half` is half the width of its 95 % interval, None for one seed."""

    mean: float
    half: float | None
    n: int


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return mean and 95 % confidence interval: mean +- t_{0.975, n-1} s / sqrt(n)."""
    if not values:
        return None
    n = len(values)
    if n == 1:
        return Estimate(values[0], None, 1)
    spread = statistics.stdev(values) / n**0.5
    return Estimate(statistics.fmean(values), float(stdtrit(n - 1, 0.975)) * spread, n)


@dataclass(frozen=True)
class Row:
    """What the runs of a group come to; differences are to the baseline, over matched seeds."""

    name: str
    seeds: str
    epsilon_target: float | None
    epsilon_max: float | None  # the largest of any client of any run
    figure: Estimate
    test_figure: Estimate | None
    difference: Estimate | None = None
    test_difference: Estimate | None = None
    bytes: float | None = None  # sent up and down, the mean of the runs


def compare(
    groups: Sequence[Group], baseline: str | None = None, metric: Metric | None = None
) -> list[Row]:
    """Return a row for each group, with differences to the group that `baseline` names.

    They are of `metric`, by default the objective's own. Of one on the test part there is no second
    figure.
    """
    base = find_group(groups, baseline) if baseline is not None else None
    rows, name = [], (metric or metric_of_groups(groups)).name
    test = f"{TEST}{name}"
    for group in groups:
        targets = set(group.values("epsilon_target").values())
        found = estimate(list(group.values(name).values()))
        assert found is not None
        against = base if base is not None and base is not group else None
        rows.append(
            Row(
                group.name,
                " ".join(str(run.seed) for run in group.runs),
                min(targets) if targets else None,
                max(group.values("epsilon_max").values(), default=None),
                found,
                estimate(list(group.values(test).values())),
                paired(group, against, name) if against else None,
                paired(group, against, test) if against else None,
                sent(group),
            )
        )
    return rows


def sent(group: Group) -> float | None:
    """Return the bytes that a run of the group sent up and down, their mean; None if unknown."""
    both = [list(group.values(f"bytes_{way}").values()) for way in ("up", "down")]
    if any(len(values) != len(group.runs) for values in both):
        return None
    return statistics.fmean(up + down for up, down in zip(*both, strict=True))


def paired(group: Group, base: Group, key: str) -> Estimate | None:
    """Return the mean difference group - base over the seeds that both have, with its interval."""
    ours, theirs = group.values(key), base.values(key)
    return estimate([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def find_group(groups: Sequence[Group], name: str) -> Group:
    """Return the group of this name, or the only one whose name holds it; InputError otherwise."""
    exact = [g for g in groups if g.name == name]
    whole = [g for g in groups if f"{name}, " in f"{g.name}, "]  # not 1 for 10
    found = exact or whole or [g for g in groups if name in g.name]
    if len(found) > 1:
        names = "; ".join(g.name for g in found)
        raise InputError(f"--baseline: {name!r} fits more than one group: {names}")
    if not found:
        raise one_of("--baseline", name, [g.name for g in groups])
    return found[0]


def as_csv(rows: Sequence[Row], metric: Metric) -> str:
    """Return the rows as CSV; empty where there is no value."""
    estimates = {
        "figure": metric.name, "test_figure": f"test_{metric.name}", "difference": "difference",
        "test_difference": "test_difference",
    }  # fmt: skip
    plain = ("name", "seeds", "epsilon_target", "epsilon_max")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    parts = ("mean", "half", "n")
    named = [f"{e}_{p}" for e in estimates.values() for p in parts]
    writer.writerow([*plain, *named, "bytes"])
    for row in rows:
        told = asdict(row)
        cells = [told[key] for key in plain]
        cells += [(told[e] or {}).get(part) for e in estimates for part in parts]
        cells.append(told["bytes"])
        writer.writerow(["" if cell is None else cell for cell in cells])
    return out.getvalue()


def shown(value: Estimate | None, signed: bool = False) -> str:
    """Return an estimate as text."""
    if value is None:
        return "-"
    mean = f"{value.mean:+.4f}" if signed else f"{value.mean:.4f}"
    return f"{mean} (n={value.n})" if value.half is None else f"{mean} ± {value.half:.4f}"
