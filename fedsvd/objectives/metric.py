"""The figures that evaluations come to, and by which of them runs are compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final


@final
@dataclass(frozen=True)
class Metric:
    """A figure of an evaluation: its name in records, the words for it, and which way is better.

    `share`: it is one, from 0 to 1, and shown in per cent on a page.
    """

    name: str
    title: str
    higher: bool
    share: bool = False

    def on_page(self, value: float) -> str:
        """Return the value as a page shows it in large letters."""
        return f"{100 * value:.1f} %" if self.share else f"{value:.4g}"

    def score(self, value: float) -> float:
        """Return the value with the sign that makes more of it better."""
        return value if self.higher else -value


ACCURACY = Metric("accuracy", "accuracy", higher=True, share=True)
PERPLEXITY = Metric("perplexity", "perplexity", higher=False)
TOKEN_ACCURACY = Metric("token_accuracy", "token accuracy", higher=True, share=True)

EXACT_MATCH = Metric("exact_match", "exact match", higher=True, share=True)
F1 = Metric("f1", "F1", higher=True, share=True)

MACRO_F1 = Metric("macro_f1", "macro-F1", higher=True)
MCC = Metric("mcc", "MCC", higher=True)
LOSS = Metric("loss", "loss", higher=False)

# Whatever a summary may hold of a part.
FIGURES = (ACCURACY, PERPLEXITY, TOKEN_ACCURACY, EXACT_MATCH, F1, MACRO_F1, MCC, LOSS)
# Of answers that are generated, on `answered` rows.
GENERATED = (EXACT_MATCH, F1)
# By which runs are compared, one for every objective.
MAIN = (ACCURACY, PERPLEXITY)


def metric_of(told: Mapping[str, Any]) -> Metric:
    """Return the metric by which a run is compared, from its summary or a round's record.

    It is the one that is there; accuracy where none is, as in a round that was not evaluated.
    """
    return next((metric for metric in MAIN if metric.name in told), ACCURACY)
