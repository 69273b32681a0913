"""What a run left, as tables of pandas."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pandas import DataFrame, Index

QUANTILES = ("q10", "q50", "q90")  # of a list of three that a client reports
BY_CLIENT = ("reports", "epsilon", "noise_ratios", "update_norms")  # too much for a row of a round


def history(folder: Path) -> DataFrame:
    """Return a row for each round from 0: what metrics.jsonl holds but for each client's own.

    Lists (`clients`, `sat_out`) stay lists; of what is by client (`failed`) the number is left.
    """
    rows = []
    for metrics in _rounds(folder):
        told = {key: value for key, value in metrics.items() if key not in BY_CLIENT}
        rows.append({k: len(v) if isinstance(v, dict) else v for k, v in told.items()})
    return DataFrame(rows)


def reports(folder: Path) -> DataFrame:
    """Return a row for each client that was asked in a round: what it reported and has spent.

    `failed` says why it was left out. Quantiles of gradient norms are columns of their own.
    """
    rows = [row for metrics in _rounds(folder) for row in _asked(metrics)]
    return DataFrame(rows) if rows else DataFrame(columns=["round", "client"])


def clients(folder: Path) -> DataFrame:
    """Return a row for each client: its ledger, its size, and what it reported last.

    The ledger's columns are those of privacy.json; `published` is the epsilon against who sees only
    the published model. `last_round` is the last round that the client reported in, and further
    columns with `last_` are that report.
    """
    ledger = json.loads((folder / "privacy.json").read_text(encoding="utf-8"))
    rows: dict[int, dict[str, Any]] = {}
    for one in ledger["clients"]:
        rows[one["client"]] = {k: v for k, v in one.items() if k not in ("client", "events")}
    for client, epsilon in ((ledger.get("published") or {}).get("clients") or {}).items():
        rows[int(client)]["published"] = epsilon
    last = {row["client"]: row for metrics in _rounds(folder) for row in _asked(metrics)
            if "failed" not in row}  # fmt: skip
    for client, told in last.items():
        kept = {k: v for k, v in told.items() if k not in ("client", "epsilon")}
        rows[client] |= {f"last_{key}": value for key, value in kept.items()}
    return DataFrame(list(rows.values()), index=Index(list(rows), name="client"))


def _rounds(folder: Path) -> Iterator[Mapping[str, Any]]:
    with (folder / "metrics.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _asked(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    told, failed = metrics.get("reports") or {}, metrics.get("failed") or {}
    spent = metrics.get("epsilon") or {}
    for client in sorted({int(k) for k in (*told, *failed)} | set(metrics.get("clients") or ())):
        key = str(client)
        row: dict[str, Any] = {"round": metrics["round"], "client": client}
        if key in failed:
            row["failed"] = failed[key]
        for name, value in (told.get(key) or {}).items():
            if isinstance(value, list) and len(value) == len(QUANTILES):
                short = name.removesuffix("_quantiles")
                row |= {f"{short}_{q}": v for q, v in zip(QUANTILES, value, strict=True)}
            elif not isinstance(value, (list, dict)):
                row[name] = value
        row["epsilon"] = spent.get(key)
        yield row
