"""What a server's message may hold, and what a node's answer may."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedsvd.client.rule import STEPS, rule_in
from fedsvd.errors import InputError, wrong
from fedsvd.records import (
    ARRAYS,
    ATTEMPT,
    CONFIG,
    FAILED,
    KEEPS,
    LOSS,
    METRICS,
    RANKED,
    RANKS,
    REPORT,
    STYPE,
    TRAINS,
    WEIGHT,
    arrays_of,
    decode,
    finite,
    metrics_of,
    report_of,
)
from fedsvd.settings import Settings

MOST_ATTEMPTS = 1000
MOST_SMOOTHING = 1000.0  # entries
BELOW_ONE = 1 - 1e-9  # of what 1 less it is divided by
MOST_WHOLE = 2**62  # of a whole number in a rule
MOST_VALUE = 1e6  # of a number in a state


def check_training(message: Message, settings: Settings) -> tuple[int, int]:
    """Return round and attempt of a training message; InputError if a node cannot work with it."""
    config = _config(message)
    number = _whole(config, "server-round", 1, settings.rounds)
    attempt = _whole({ATTEMPT: 0, **config}, ATTEMPT, 0, MOST_ATTEMPTS)
    for key, known in ((TRAINS, "A, B, W"), (KEEPS, "A, B, W, extra")):
        kinds = config.get(key, [])
        if not isinstance(kinds, list) or not set(kinds) <= set(known.split(", ")):
            raise wrong(key, kinds, f"a list of {known}")
    ranks, ranked = config.get(RANKS, []), config.get(RANKED, [])
    if not isinstance(ranks, list) or not isinstance(ranked, list) or len(ranks) != len(ranked):
        raise wrong(RANKS, ranks, "a list, one for each entry of another")
    if not all(isinstance(r, int) and 1 <= r <= (settings.adapter.rank or 0) for r in ranks):
        raise wrong(RANKS, ranks, f"1 to adapter.rank = {settings.adapter.rank}")
    _check_rule(config)
    _check_arrays(message)
    return number, attempt


def _config(message: Message) -> Mapping[str, Any]:
    if message.has_error() or CONFIG not in message.content.config_records:
        raise InputError(f"{CONFIG}: the message holds no such record")
    return dict(message.content.config_records[CONFIG])


def _whole(config: Mapping[str, Any], key: str, least: int, most: int) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise wrong(key, value, f"a whole number from {least} to {most}")
    return value


def _check_rule(config: Mapping[str, Any]) -> None:
    rule = rule_in(config)
    if rule.steps not in STEPS:
        raise wrong("local-steps", rule.steps, f"one of {', '.join(STEPS)}")
    for name in ("budget", "folds"):
        _whole({f"local-{name}": asdict(rule)[name]}, f"local-{name}", 0, MOST_WHOLE)
    most = {
        "smoothing": MOST_SMOOTHING, "tail": 1.0, "probe": 1.0, "beta1": BELOW_ONE,
        "beta2": BELOW_ONE, "gamma": 1.0,
    }  # fmt: skip
    for name, value in asdict(rule).items():
        if name == "steps":
            continue
        if name in ("alternates", "binomial", "projected"):
            if not isinstance(value, bool):
                raise wrong(f"local-{name}", value, "true or false")
            continue
        number, limit = isinstance(value, (int, float)), most.get(name, math.inf)
        if not number or not math.isfinite(value) or not 0 <= value <= limit:
            raise wrong(f"local-{name}", value, f"a number from 0 to {limit}")


def _check_arrays(message: Message) -> None:
    if ARRAYS not in message.content.array_records:
        raise InputError(f"{ARRAYS}: the message holds no such record")
    for name, array in arrays_of(message).items():
        if array.stype != STYPE or array.data[:6] != b"\x93NUMPY":
            raise wrong(f"{ARRAYS}.{name}", array.stype, f"{STYPE!r} in NumPy's format")
        value = decode(array)
        if value.dtype not in (np.float32, np.float64) or not finite(value):
            raise wrong(
                f"{ARRAYS}.{name}", str(value.dtype), "finite numbers of float32 or float64"
            )
        if value.size and float(np.abs(value).max()) > MOST_VALUE:
            raise wrong(f"{ARRAYS}.{name}", float(np.abs(value).max()), f"at most {MOST_VALUE:g}")


def released(reply: Message, message: Message, diagnostics: bool) -> Message:
    """Return a training reply with what the mechanism releases: arrays, weight, number of steps.

    Losses, norms and anything else that is not known here stay on the node, unless its owner's
    policy lets diagnostics out. RuntimeError if the reply tells of a failure.
    """
    report = report_of(reply)
    if reply.has_error() or FAILED in report:
        why = reply.error.reason if reply.has_error() else report[FAILED]
        raise RuntimeError(f"training failed: {why}")
    if not diagnostics:
        report = {"steps": int(report["steps"])}
    told = metrics_of(reply)
    names = [n for n in (WEIGHT, LOSS) if n in told and (diagnostics or n != LOSS)]
    numbers = MetricRecord({n: float(told[n]) for n in names})  # type: ignore[arg-type]
    content = {ARRAYS: arrays_of(reply), METRICS: numbers, REPORT: ConfigRecord(report)}
    return Message(RecordDict(content), reply_to=message)  # type: ignore[arg-type]


def evaluated(reply: Message, message: Message) -> Message:
    """Return an evaluation's reply with its numbers alone; RuntimeError if it failed."""
    if reply.has_error():
        raise RuntimeError(f"evaluation failed: {reply.error.reason}")
    numbers = {k: float(v) for k, v in metrics_of(reply).items()}  # type: ignore[arg-type]
    return Message(RecordDict({METRICS: MetricRecord(numbers)}), reply_to=message)  # type: ignore[arg-type]
