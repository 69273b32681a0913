"""What a node says when it does not train: one type from a fixed list, never text."""

import traceback
from enum import StrEnum
from typing import final

from flwr.app import Error, Message

from fedsvd.terminal import complain


@final
class Refusal(StrEnum):
    """The types. Which one it is follows from public quantities, the policy and the account.

    Whatever depends on private data, or on anything unforeseen, is "not-available".
    """

    NO_POLICY = "no-policy"
    NOT_ALLOWED = "not-allowed"
    UNUSABLE = "unusable-message"
    SPENT = "budget-spent"
    UNAVAILABLE = "not-available"


# The codes of Flower's Error; Flower's own end below 100.
CODES = {kind: 100 + place for place, kind in enumerate(Refusal)}

MOST_CHARACTERS = 2000


class Refused(Exception):
    """A node does not do what it was asked; `told` is for its owner alone."""

    def __init__(self, kind: Refusal, told: str) -> None:
        super().__init__(told)
        self.kind, self.told = kind, told


def answer(message: Message, kind: Refusal) -> Message:
    """Return the answer that carries the type and nothing else."""
    return Message(Error(code=CODES[kind], reason=kind.value), reply_to=message)


def tell_owner(kind: Refusal, error: BaseException) -> None:
    """Write on this process's standard error, which stays on the node, why it refused.

    What a server sent may be in it, so nothing is printed that a terminal would obey.
    """
    text = " ".join((str(error) or type(error).__name__).split())[:MOST_CHARACTERS]
    shown = "".join(c if c.isprintable() else "?" for c in text)
    complain(f"this node refuses ({kind}): {shown}")
    if not isinstance(error, Refused):
        complain("".join(traceback.format_exception(error)).rstrip())
