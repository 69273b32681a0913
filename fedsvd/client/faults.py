"""Failures made on purpose, from the stream (seed, "faults", round, client)."""

import threading
from collections.abc import Callable, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, Metadata, RecordDict

from fedsvd.randomness import Purpose, attempt_key, numpy_stream
from fedsvd.records import ARRAYS, ATTEMPT, CONFIG, FAILED, REPORT, arrays_of, decode, report_of
from fedsvd.settings import Settings
from fedsvd.settings.faults import AT_CLIENT, KINDS, ON_THE_WAY

Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]


def fault_of(settings: Settings, round: int, client: int, attempt: int = 0) -> str | None:
    """Return the kind of failure that the client has in this round, or None."""
    faults = settings.faults
    if faults.rate == 0:
        return None
    rng = numpy_stream(settings.seed, Purpose.FAULTS, round, client, *attempt_key(attempt))
    if rng.random() >= faults.rate:
        return None
    return str(rng.choice(KINDS)) if faults.kind == "mixed" else faults.kind


def injected(settings: Settings) -> list[Mod]:
    """Return what a ClientApp wraps its training in so that it fails when `fault_of` says so."""
    if settings.faults.rate == 0:
        return []

    def mod(message: Message, context: Context, call: Callable[..., Message]) -> Message:
        if message.metadata.message_type != "train":
            return call(message, context)
        config = message.content.config_records[CONFIG]
        client = int(context.node_config["partition-id"])
        number, attempt = int(config["server-round"]), int(config.get(ATTEMPT, 0))  # type: ignore[arg-type]
        kind = fault_of(settings, number, client, attempt)
        if kind not in AT_CLIENT:
            return call(message, context)
        if kind == "hang":
            threading.Event().wait()  # until somebody ends it
        reply = call(message, context)
        if kind == "raise":  # after its steps: what was taken is spent
            report = ConfigRecord(
                {"steps": int(report_of(reply).get("steps", 0)), FAILED: "injected"}
            )
            return Message(RecordDict({REPORT: report}), reply_to=message)
        if not reply.has_error() and ARRAYS in reply.content.array_records:
            reply.content[ARRAYS] = _spoilt(arrays_of(reply), kind)
        return reply

    return [mod]


def _spoilt(arrays: ArrayRecord, kind: str) -> ArrayRecord:
    """Return the arrays with one of them made unusable."""
    found = dict(arrays.items())
    name = sorted(found)[0]
    value = decode(found[name]).copy()
    if kind == "names":
        found[f"{name}.unknown"] = found.pop(name)
    elif kind == "shapes":
        found[name] = Array(np.concatenate([value, value], axis=-1))
    elif kind == "dtypes":
        found[name] = Array(value.astype(np.float16))
    else:
        value.reshape(-1)[0] = np.nan if kind == "nan" else np.inf
        found[name] = Array(value)
    return ArrayRecord(found)


def on_the_way(
    settings: Settings, replies: Sequence[Message], round: int, attempt: int
) -> list[Message]:
    """Return the replies as they would arrive: of another round, twice, or unasked for."""
    arrived: list[Message] = []
    for reply in replies:
        client = reply.metadata.src_node_id
        kind = fault_of(settings, round, client, attempt)
        if kind not in ON_THE_WAY or reply.has_error():
            arrived.append(reply)
        elif kind == "stale":
            arrived.append(_with(reply, reply_to_message_id=f"of round {round - 1}"))
        elif kind == "repeated":  # a second reply, and another one
            changed = RecordDict(dict(reply.content.items()))
            changed[ARRAYS] = _spoilt(arrays_of(reply), "nan")
            arrived += [reply, _with(reply, content=changed)]
        else:
            arrived.append(_with(reply, src_node_id=settings.clients.number + client))
    return arrived


def _with(
    reply: Message,
    *,
    content: RecordDict | None = None,
    reply_to_message_id: str | None = None,
    src_node_id: int | None = None,
) -> Message:
    """Return a copy of a reply with something in its place."""
    told = reply.metadata
    metadata = Metadata(
        run_id=told.run_id,
        message_id=told.message_id,
        src_node_id=told.src_node_id if src_node_id is None else src_node_id,
        dst_node_id=told.dst_node_id,
        reply_to_message_id=reply_to_message_id or told.reply_to_message_id,
        group_id=told.group_id,
        created_at=told.created_at,
        ttl=told.ttl,
        message_type=told.message_type,
    )
    return Message(content=content or reply.content, metadata=metadata)  # type: ignore[call-overload]
