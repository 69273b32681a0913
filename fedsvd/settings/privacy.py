"""What is protected, and the budget."""

from dataclasses import dataclass

from fedsvd.errors import wrong
from fedsvd.settings.checks import choice, positive


@dataclass(frozen=True)
class PrivacySettings:
    """What is protected, and the budget; see configs/privacy/."""

    unit: str
    epsilon: float | None = None
    noise_multiplier: float | None = None  # given instead of epsilon, which then follows
    delta: float = 1e-5
    clip_norm: float = 1.0
    clipping: str = "flat"
    gradients: str = "auto"  # unit=example: how each example's own is taken
    accountant: str = "prv"
    accounting: str = "ours"  # what the noise is calibrated for: see fedsvd.privacy.recipes
    public_counts: bool = False  # whether the numbers of examples may show in rates and weights
    threat_model: str = "server_sees_participants"
    secure_noise: bool = False
    diagnostics: bool = True
    clip_quantile: float | None = None  # unit=client: adapt the clip to this quantile of norms
    clip_rate: float = 0.2
    clip_noise: float | None = None  # standard deviation on the count of clients below the clip

    def __post_init__(self) -> None:
        choice("privacy.unit", self.unit, UNITS)
        choice("privacy.accountant", self.accountant, ("pld", "prv", "rdp"))
        choice("privacy.accounting", self.accounting, ACCOUNTINGS)
        choice("privacy.clipping", self.clipping, ("automatic", "flat", "per_layer"))
        choice("privacy.gradients", self.gradients, ("auto", "hooks", "loop"))
        choice("privacy.threat_model", self.threat_model, THREAT_MODELS)
        if self.unit == "none":
            return
        if self.noise_multiplier is not None:
            positive("privacy.noise_multiplier", self.noise_multiplier)
            if self.epsilon is not None:
                raise wrong(
                    "privacy.noise_multiplier", self.noise_multiplier,
                    f"null while privacy.epsilon={self.epsilon:g} is set: one follows from the "
                    "other; add privacy.epsilon=null",
                )  # fmt: skip
        elif self.epsilon is None:
            raise wrong(
                "privacy.epsilon", None, "a number above 0, or set privacy.noise_multiplier"
            )
        else:
            positive("privacy.epsilon", self.epsilon)
        if not 0 < self.delta < 1:
            raise wrong("privacy.delta", self.delta, "between 0 and 1/n of every client")
        positive("privacy.clip_norm", self.clip_norm)
        self._check_unit()
        if self.accounting != "ours":
            self._check_recipe()

    def _check_recipe(self) -> None:
        if self.unit != "example":
            raise wrong(
                "privacy.accounting", self.accounting,
                f"'ours' with privacy.unit={self.unit}: the recipes are for DP-SGD at clients",
            )  # fmt: skip
        if self.noise_multiplier is not None:
            raise wrong(
                "privacy.accounting", self.accounting,
                "'ours' with privacy.noise_multiplier, from which no noise is calibrated",
            )  # fmt: skip

    def _check_unit(self) -> None:
        if self.unit == "example" and self.threat_model == "trusted_server":
            raise wrong(
                "privacy.threat_model", self.threat_model,
                "'server_sees_participants' with privacy.unit=example; sampling of clients "
                "amplifies only privacy.unit=client",
            )  # fmt: skip
        if self.clip_quantile is not None:
            if self.unit != "client" or self.clipping != "flat":
                raise wrong(
                    "privacy.clip_quantile", self.clip_quantile,
                    "null, unless privacy.unit=client and privacy.clipping=flat",
                )  # fmt: skip
            if not 0 < self.clip_quantile < 1:
                raise wrong("privacy.clip_quantile", self.clip_quantile, "between 0 and 1")
        positive("privacy.clip_rate", self.clip_rate)
        if self.clip_noise is not None:
            positive("privacy.clip_noise", self.clip_noise)


ACCOUNTINGS = ("ours", "paper", "paper_mean")
UNITS = ("client", "example", "none")
THREAT_MODELS = ("server_sees_participants", "trusted_server")
