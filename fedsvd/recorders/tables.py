"""The tables of a run's report: labels, confusion, clients."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from fedsvd.objectives.metric import FIGURES, LOSS, Metric
from fedsvd.privacy.plan import PrivacyPlan

MATRIX = 12  # labels up to which the whole matrix of confusion is shown
FEW = 20  # rows of a table that is shown unfolded


def labels(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how well each label is found, and what it is mistaken for, from a public part alone.

    None where there is no matrix of confusion.
    """
    held = summary.get("confusion")
    if not held:
        return None
    counts, names = held["counts"], held["labels"]
    rows = [_label(k, counts, names) for k in range(len(names))]
    pairs = [
        (count, names[i], names[j])
        for i, row in enumerate(counts)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return {
        "part": held["part"],
        "rows": rows,
        "names": names,
        "matrix": _matrix(counts) if len(names) <= MATRIX else None,
        "mistaken": sorted(pairs, key=lambda pair: -pair[0])[:10],
        "folded": len(names) > FEW,
    }


def _label(k: int, counts: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, Any]:
    own, taken = sum(counts[k]), sum(row[k] for row in counts)
    recall = counts[k][k] / own if own else None
    precision = counts[k][k] / taken if taken else None
    both = own + taken
    return {
        "name": names[k],
        "examples": own,
        "recall": recall,
        "precision": precision,
        "f1": 2 * counts[k][k] / both if both else None,
    }


def _matrix(counts: Sequence[Sequence[int]]) -> list[list[dict[str, Any]]]:
    """Return each cell's count and its share of the row, which shades it."""
    return [
        [{"count": n, "share": n / sum(row) if sum(row) else 0.0} for n in row] for row in counts
    ]


def baseline(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the share of the most frequent label of validation, None where it is not known."""
    counts = next((m["confusion"] for m in reversed(history) if "confusion" in m), None)
    if not counts:
        return None
    rows = [sum(row) for row in counts]
    return max(rows) / sum(rows) if sum(rows) else None


def by_client(summary: Mapping[str, Any], metric: Metric) -> dict[str, Any] | None:
    """Return each client's figures on its rows of the test part; None where rows have no owners.

    `more` of a row, under `heads`, are the objective's further figures, "-" where there is none.
    """
    held = summary.get("test_by_client")
    if not held:
        return None
    order = sorted(held, key=lambda k: metric.score(held[k][metric.name]))
    more = [
        m for m in FIGURES
        if m.name not in (metric.name, LOSS.name) and any(m.name in one for one in held.values())
    ]  # fmt: skip
    rows = [
        {"client": k, "figure": held[k][metric.name], "loss": held[k]["loss"],
         "examples": held[k]["examples"],
         "more": [f"{held[k][m.name]:.4f}" if m.name in held[k] else "-" for m in more]}
        for k in order
    ]  # fmt: skip
    figures = [row["figure"] for row in rows]
    return {
        "rows": rows,
        "heads": [m.title for m in more],
        "said": f"worst {figures[0]:.4f}, median {median(figures):.4f}, best {figures[-1]:.4f}",
        "folded": len(rows) > FEW,
    }


def clients(
    ledger: Sequence[Mapping[str, Any]], plan: PrivacyPlan, counts: bool, mixes: Sequence[str]
) -> dict[str, Any]:
    """Return the ledger's line of each client; numbers of examples and mixes if `counts`."""
    heads = ["client", *(["examples"] if counts else []), "sample rate", "rounds", "steps"]
    heads += ["noise multiplier", "epsilon"] if plan.private else []
    rows = []
    for c in ledger:
        row = [str(c["client"]), *([f"{c['examples']:,}"] if counts else [])]
        row += [
            f"{c['accounted_rate']:.4f}",
            f"{c['rounds']} of {c['rounds_bound']}",
            f"{c['steps']}",
        ]
        if plan.private:
            row += [f"{c['noise_multiplier']:.4f}", f"{c['epsilon']:.4f}"]
        rows.append(row)
    return {
        "heads": heads,
        "rows": rows,
        "mixes": list(mixes) if counts else [],
        "said": _range(ledger, plan),
        "folded": len(rows) > FEW,
    }


def _range(ledger: Sequence[Mapping[str, Any]], plan: PrivacyPlan) -> str:
    told = f"{len(ledger)} clients, {_spread([c['steps'] for c in ledger], 'd')} steps each"
    if not plan.private:
        return told
    spent, noise = ([c[key] for c in ledger] for key in ("epsilon", "noise_multiplier"))
    return f"{told}, epsilon {_spread(spent, '.4f')}, noise multiplier {_spread(noise, '.4f')}"


def _spread(values: Sequence[float], form: str) -> str:
    """Return the range of values with their median, or the value where all are one."""
    least, most = format(min(values), form), format(max(values), form)
    middle = format(median(values), form if form != "d" else "g")
    return least if least == most else f"{least} to {most} (median {middle})"
