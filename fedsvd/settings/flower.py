"""What becomes of each of Flower's strategies here, as plain data: `--list`, the checks and the docs
say what this table says.

It is complete for the pinned version of Flower: tests/strategies/test_flower.py walks over the
package. A class of `flwr` that is not in it is refused.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

PACKAGE = "flwr.serverapp.strategy"


@dataclass(frozen=True)
class Stock:
    """One of Flower's strategies.

    `does`: what it does with what clients send; `refused`: why it cannot be used, "" if it can.
    `among`: it chooses among clients, and has nothing to choose from where privacy.unit=client leaves
    the server one noised mean. `losses`: it is given every client's loss, which is no release.
    `rate`: its option that states the clients' learning rate.
    """

    does: str = ""
    refused: str = ""
    among: bool = False
    losses: bool = False
    rate: str | None = None


def _noised(where: str) -> Stock:
    return Stock(
        refused=f"adds noise at the {where} that no ledger here holds, around a strategy that no "
        "configuration can give it; use privacy=client_level"
    )


_TREES = Stock(refused="aggregates trees of XGBoost; clients here train tensors")
_ABSTRACT = Stock(refused="is a base class without a rule of its own")

STOCK: Mapping[str, Stock] = {
    "Bulyan": Stock("trims around what Multi-Krum chose", among=True),
    "DifferentialPrivacyAdaptiveBase": _ABSTRACT,
    "DifferentialPrivacyClientSideAdaptiveClipping": _noised("server"),
    "DifferentialPrivacyClientSideFixedClipping": _noised("server"),
    "DifferentialPrivacyFixedClippingBase": _ABSTRACT,
    "DifferentialPrivacyServerSideAdaptiveClipping": _noised("server"),
    "DifferentialPrivacyServerSideFixedClipping": _noised("server"),
    "FedAdagrad": Stock("follows the mean by Adagrad", rate="eta_l"),
    "FedAdam": Stock("follows the mean by Adam", rate="eta_l"),
    "FedAvg": Stock("takes the weighted mean"),
    "FedAvgM": Stock("follows the mean with momentum"),
    "FedMedian": Stock("takes the median, entry by entry", among=True),
    "FedOpt": _ABSTRACT,
    "FedProx": Stock("takes the weighted mean; clients stay near it by a proximal term, proximal_mu"),
    "FedTrimmedAvg": Stock("takes the mean without the extremes, entry by entry", among=True),
    "FedXgbBagging": _TREES,
    "FedXgbCyclic": _TREES,
    "FedYogi": Stock("follows the mean by Yogi", rate="eta_l"),
    "Krum": Stock("takes the client that is nearest to the others", among=True),
    "MultiKrum": Stock("averages the clients that are nearest to the others", among=True),
    "QFedAvg": Stock(
        "weights clients by their losses to the power q; without privacy only",
        losses=True, rate="client_learning_rate",
    ),
    "Strategy": _ABSTRACT,
}  # fmt: skip

# Options that can have one value here, with the reason; a run has its own keys for what they do.
FIXED: Mapping[str, tuple[object, str]] = {
    "fraction_train": (1.0, "clients.per_round and clients.participation draw who trains"),
    "min_train_nodes": (1, "a round that has fewer would wait for ever"),
    "min_available_nodes": (1, "a round that has fewer would wait for ever"),
    "fraction_evaluate": (0.0, "the server evaluates: recorder.evaluate_every"),
    "min_evaluate_nodes": (0, "the server evaluates: recorder.evaluate_every"),
    "weighted_by_key": ("num-examples", "clients send their weight by this name"),
    "train_loss_key": ("train_loss", "clients send their loss by this name"),
    "arrayrecord_key": ("arrays", "clients look for arrays by this name"),
    "configrecord_key": ("config", "clients look for their orders by this name"),
    "train_metrics_aggr_fn": (None, "what clients report is recorded as it is"),
    "evaluate_metrics_aggr_fn": (None, "the server evaluates: recorder.evaluate_every"),
    "selection_rule": (None, "it is a function; derive a class of your own to set another"),
}
# Those that a class derived from Flower's can get wrong in its own constructor; the first three
# matter only to Flower's own way of drawing clients.
HELD = (
    "fraction_train", "min_train_nodes", "min_available_nodes", "weighted_by_key",
    "train_loss_key", "arrayrecord_key", "configrecord_key",
)  # fmt: skip

_positive: Callable[[float], bool] = lambda x: 0 < x < math.inf  # noqa: E731
_share: Callable[[float], bool] = lambda x: 0 <= x < 1  # noqa: E731

# What the numbers of Flower's strategies must be: whether they are whole, a test, and its words.
NUMBERS: Mapping[str, tuple[bool, Callable[[float], bool], str]] = {
    "proximal_mu": (False, lambda x: 0 <= x < math.inf, "a number of at least 0"),
    "q": (False, lambda x: 0 <= x < math.inf, "a number of at least 0"),
    "client_learning_rate": (False, _positive, "a number above 0"),
    "eta": (False, _positive, "a number above 0"),
    "eta_l": (False, _positive, "a number above 0"),
    "tau": (False, _positive, "a number above 0"),
    "beta_1": (False, _share, "in [0, 1)"),
    "beta_2": (False, _share, "in [0, 1)"),
    "server_learning_rate": (False, _positive, "a number above 0"),
    "server_momentum": (False, _share, "in [0, 1)"),
    "beta": (False, lambda x: 0 <= x < 0.5, "in [0, 0.5)"),
    "num_malicious_nodes": (True, lambda x: x >= 0, "a whole number of at least 0"),
    "num_nodes_to_select": (True, lambda x: x >= 1, "a whole number of at least 1"),
}


def usable() -> list[str]:
    """Return the names of Flower's strategies that can be used."""
    return [name for name, stock in STOCK.items() if not stock.refused]
