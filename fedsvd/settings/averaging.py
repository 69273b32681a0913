"""Which average of the rounds' models is evaluated and exported."""

from dataclasses import dataclass

from fedsvd.errors import wrong
from fedsvd.settings.checks import choice


@dataclass(frozen=True)
class AveragingSettings:
    """The average of the models after rounds in (start, end], which are parts of `rounds`.

    "tail" weighs these rounds equally, "ema" each `decay` times the one after it; "none" takes the
    last model. See configs/averaging/.
    """

    name: str = "none"
    decay: float = 0.9  # ema only
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        choice("averaging.name", self.name, AVERAGING)
        if not 0 <= self.decay < 1:
            raise wrong(
                "averaging.decay", self.decay, "in [0, 1); equal weights are averaging=tail"
            )
        if not 0 <= self.start < 1:
            raise wrong("averaging.start", self.start, "in [0, 1), a part of rounds")
        if not self.start < self.end <= 1:
            raise wrong(
                "averaging.end", self.end, f"above averaging.start = {self.start:g}, at most 1"
            )

    @property
    def active(self) -> bool:
        """Whether anything is averaged."""
        return self.name != "none"

    def holds(self, round: int, rounds: int) -> bool:
        """Return whether the model after a round of `rounds` is among those averaged."""
        # A part such as 0.7 of 10 rounds is 7 rounds, whatever the last bits say.
        low, high = (round_part(part * rounds) for part in (self.start, self.end))
        return self.active and low < round <= high

    def held(self, rounds: int) -> list[int]:
        """Return the rounds of so many that are averaged."""
        return [n for n in range(1, rounds + 1) if self.holds(n, rounds)]

    def describe(self, rounds: int) -> str:
        """Return the average as a phrase, for a run of so many rounds."""
        if not self.active:
            return "none: the last model"
        held = self.held(rounds)
        told = f"rounds {held[0]} to {held[-1]}" if held else "no round"
        kind = f"ema, decay {self.decay:g}" if self.name == "ema" else "equal weights"
        return f"{kind}, of the models after {told}"


def round_part(value: float) -> float:
    """Return a number of rounds, whole if it is so to nine digits."""
    return float(round(value)) if abs(value - round(value)) < 1e-9 else value


AVERAGING = ("ema", "none", "tail")
