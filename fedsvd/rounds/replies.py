"""Which of a round's replies count: the state depends on the set of valid ones and nothing else."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message
from torch import Tensor

from fedsvd import records


@dataclass
class Received:
    """What came of a round's messages.

    `good`: valid replies in the order of client ids. `failed`: why a client was left out. `steps`:
    what clients credibly say they took. `reports`: what the valid replies say. `causes`: of the
    failures those of software, as the clients name them. `ignored`: what came beside the answers that
    were asked for, by the node that sent it.
    """

    good: list[Message] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    reports: dict[int, dict[str, Any]] = field(default_factory=dict)
    causes: dict[int, str] = field(default_factory=dict)
    ignored: dict[int, str] = field(default_factory=dict)

    def one_cause(self, asked: Collection[int]) -> str | None:
        """Return what made the software of every client that was asked fail, if it is one thing."""
        found = set(self.causes.values())
        return found.pop() if len(found) == 1 and set(asked) == set(self.causes) else None


def receive(
    messages: Sequence[Message],
    replies: Iterable[Message],
    wanted: Callable[[int], Mapping[str, Tensor]],
    most: int,
    metrics: Collection[str] | None = None,
) -> Received:
    """Sort out the replies to a round's messages, in whatever order and number they came.

    `wanted(client)` are the tensors that a client must send. Ignored are replies from nodes that were
    not asked and replies to other messages than this round's. One reply delivered twice counts once;
    two different ones from a client tell nothing, and it is left out, as is one whose reply
    `records.fault` finds wrong, with these `metrics`. A number of steps outside 0..`most` is not
    believed.
    """
    asked = {m.metadata.dst_node_id: m.metadata.message_id for m in messages}
    answers: dict[int, list[Message]] = {client: [] for client in sorted(asked)}
    found = Received()
    for reply in replies:
        node = reply.metadata.src_node_id
        if node not in asked:
            found.ignored[node] = "answered without being asked"
        elif reply.metadata.reply_to_message_id != asked[node]:
            found.ignored[node] = "answered a message of another round"
        else:
            answers[node].append(reply)
    for client, given in answers.items():
        why = None
        if not given:
            why = found.ignored.get(client, "did not answer")
        elif any(not _equal(given[0], other) for other in given[1:]):
            why = f"sent {len(given)} different replies"
        else:
            if len(given) > 1:
                found.ignored[client] = f"sent its reply {len(given)} times"
            _take(found, client, given[0], most)
            why = records.fault(given[0], wanted(client), metrics)
        if why is None:
            found.good.append(given[0])
        else:
            found.failed[client] = why
            report = found.reports.pop(client, {})
            if records.CAUSE in report:
                found.causes[client] = str(report[records.CAUSE])
    found.ignored = dict(sorted(found.ignored.items()))
    return found


def _take(found: Received, client: int, reply: Message, most: int) -> None:
    report = records.report_of(reply)
    steps = report.get("steps")
    if isinstance(steps, int) and not isinstance(steps, bool) and 0 <= steps <= most:
        found.steps[client] = steps
    found.reports[client] = report


def _equal(one: Message, other: Message) -> bool:
    if one.has_error() or other.has_error():
        return one.has_error() and other.has_error() and one.error.reason == other.error.reason
    return bool(one.content == other.content)
