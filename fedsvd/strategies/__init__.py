"""Aggregation rules, one a file, over `fedsvd.lowrank`."""

from fedsvd.strategies.align import Align
from fedsvd.strategies.base import (
    NoiseView,
    PublicView,
    Strategy,
    Update,
    weighted_extra,
    weighted_mean,
)
from fedsvd.strategies.bures import Bures
from fedsvd.strategies.dp_fedadamw import DpFedAdamW
from fedsvd.strategies.fed_plora import FedPLora
from fedsvd.strategies.fedask import FedAsk
from fedsvd.strategies.fedavg import FedAvg
from fedsvd.strategies.fedex import FedEx
from fedsvd.strategies.fedgsa import FedGsa
from fedsvd.strategies.fedrot import FedRot
from fedsvd.strategies.fedrpca import FedRpca
from fedsvd.strategies.fedsa import FedSa
from fedsvd.strategies.fedsb import FedSb
from fedsvd.strategies.fedsvd import FedSVD
from fedsvd.strategies.fedsvd_alternate import FedSvdAlternate
from fedsvd.strategies.fedsvd_dct import FedSvdDct
from fedsvd.strategies.fedsvd_refresh import FedSvdRefresh
from fedsvd.strategies.ffa import FFA
from fedsvd.strategies.flexlora import FlexLora
from fedsvd.strategies.flora import Flora
from fedsvd.strategies.florist import Florist
from fedsvd.strategies.geometric_median import GeometricMedian
from fedsvd.strategies.hetlora import HetLora
from fedsvd.strategies.ilora import ILora
from fedsvd.strategies.l21 import L21
from fedsvd.strategies.la_lora import LaLora
from fedsvd.strategies.lora_a2 import LoraA2
from fedsvd.strategies.lora_fair import LoraFair
from fedsvd.strategies.prism import Prism
from fedsvd.strategies.robust_lowrank import RobustLowRank
from fedsvd.strategies.rolora import RoLora
from fedsvd.strategies.rsvd_dpd import RsvdDpd
from fedsvd.strategies.scaled import Scaled
from fedsvd.strategies.server import ServerOptimizer

__all__ = [
    "FFA",
    "L21",
    "Align",
    "Bures",
    "DpFedAdamW",
    "FedAsk",
    "FedAvg",
    "FedEx",
    "FedGsa",
    "FedPLora",
    "FedRot",
    "FedRpca",
    "FedSVD",
    "FedSa",
    "FedSb",
    "FedSvdAlternate",
    "FedSvdDct",
    "FedSvdRefresh",
    "FlexLora",
    "Flora",
    "Florist",
    "GeometricMedian",
    "HetLora",
    "ILora",
    "LaLora",
    "LoraA2",
    "LoraFair",
    "NoiseView",
    "Prism",
    "PublicView",
    "RoLora",
    "RobustLowRank",
    "RsvdDpd",
    "Scaled",
    "ServerOptimizer",
    "Strategy",
    "Update",
    "weighted_extra",
    "weighted_mean",
]
