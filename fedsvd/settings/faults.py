"""What happens when clients fail, and failures made on purpose."""

from dataclasses import dataclass

from fedsvd.errors import wrong
from fedsvd.settings.checks import at_least, choice, positive


@dataclass(frozen=True)
class FaultSettings:
    """What a round does without some of its clients; and failures to inject, see configs/faults/."""

    kind: str = "none"  # of the failures to inject
    rate: float = 0.0  # probability that a drawn client fails, by the stream (seed, "faults", ...)
    deadline: float | None = None  # seconds that a client has to answer; null: any
    min_replies: int = 0  # valid replies that a round needs (or all of its clients, if fewer)
    below: str = "repeat"  # what happens otherwise: repeat the round, or stop the run
    repeats: int = 3  # most repetitions of a round; then the run stops

    def __post_init__(self) -> None:
        choice("faults.kind", self.kind, ("none", *KINDS, "mixed"))
        if not 0 <= self.rate <= 1:
            raise wrong("faults.rate", self.rate, "a probability in [0, 1]")
        if self.kind == "none" and self.rate > 0:
            raise wrong("faults.rate", self.rate, f"0, or choose faults.kind: {', '.join(KINDS)}")
        if self.deadline is not None:
            positive("faults.deadline", self.deadline)
        elif self.kind in ("hang", "mixed"):
            raise wrong(
                "faults.deadline", None, f"a number of seconds with faults.kind={self.kind}"
            )
        at_least("faults.min_replies", self.min_replies, 0)
        choice("faults.below", self.below, ("repeat", "stop"))
        at_least("faults.repeats", self.repeats, 0)


# By the client: raises, never answers, sends what cannot be used. By whoever delivers: an answer to
# another round's message, one answer twice, one from a client that was not asked.
AT_CLIENT = ("raise", "hang", "nan", "inf", "names", "shapes", "dtypes")
ON_THE_WAY = ("stale", "repeated", "unknown")
KINDS = (*AT_CLIENT, *ON_THE_WAY)
