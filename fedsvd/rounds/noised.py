"""Client-level privacy in a round: the server puts one noised mean in the place of the replies."""

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import Message, MessageType, MetricRecord, RecordDict
from torch import Tensor

from fedsvd import records
from fedsvd.engines.base import SERVER_NODE
from fedsvd.privacy.client_level import release
from fedsvd.randomness import Purpose, attempt_key, numpy_stream
from fedsvd.rounds.run import Run


def noised(
    run: Run, good: Sequence[Message], wanted: Mapping[str, Tensor], number: int,
    metrics: dict[str, Any],
) -> Message:  # fmt: skip
    """Return one reply that holds the noised mean of the clients', and note the clip used."""
    settings, device = run.settings, run.worker.device
    assert run.client_level is not None
    generator = None
    if not run.worker.plan.secure_noise:
        keys: tuple[int | str, ...] = (number, "server", *attempt_key(run.attempt))
        generator = numpy_stream(settings.seed, Purpose.NOISE, *keys)
    updates = [records.from_record(records.arrays_of(r), device) for r in good]
    metrics["clip_norm"] = run.client_level.clip_norm
    mean, run.client_level, norms = release(updates, wanted, run.client_level, generator)
    if settings.privacy.diagnostics and len(norms):
        metrics["update_norms"] = norms.tolist()
    metrics_record = MetricRecord({records.WEIGHT: 1.0})
    content = RecordDict({records.ARRAYS: records.to_record(mean), records.METRICS: metrics_record})
    return Message(content, dst_node_id=SERVER_NODE, message_type=MessageType.TRAIN)
