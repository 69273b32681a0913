"""What the server does before round 1."""

from dataclasses import dataclass

from fedsvd.settings.checks import at_least, choice, positive


@dataclass(frozen=True)
class StartSettings:
    """Training on the public texts before round 1, which costs no privacy. See configs/start/."""

    name: str = "none"
    steps: int = 30
    lr: float = 0.01

    def __post_init__(self) -> None:
        choice("start.name", self.name, STARTS)
        at_least("start.steps", self.steps, 1)
        positive("start.lr", self.lr)

    @property
    def active(self) -> bool:
        """Whether anything is trained."""
        return self.name != "none"

    def describe(self, losses: tuple[float, float] | None = None) -> str:
        """Return what is done as a phrase, with the loss of the public texts before and after."""
        if not self.active:
            return "none"
        done = f"{self.steps} steps of Adam at {self.lr:g} on the public texts, with their labels"
        return f"{done}: loss {losses[0]:.4f} to {losses[1]:.4f}" if losses else done


STARTS = ("none", "public")
