"""How a frozen layer gets what trains, and a model its head."""

from fedsvd.adapters.adapted import Adapted
from fedsvd.adapters.base import (
    Adapter,
    Initialiser,
    Inputs,
    Parametrisation,
    Site,
    Spectrum,
)
from fedsvd.adapters.cayley import Cayley
from fedsvd.adapters.dct import Dct
from fedsvd.adapters.dora import Dora
from fedsvd.adapters.effort import Effort
from fedsvd.adapters.eora import Eora
from fedsvd.adapters.eva import Eva
from fedsvd.adapters.gradient import Gradient
from fedsvd.adapters.hadamard import Hadamard
from fedsvd.adapters.imbalanced import Imbalanced
from fedsvd.adapters.kronecker import Kronecker
from fedsvd.adapters.lora_ga import LoraGA
from fedsvd.adapters.lora_sb import LoraSB
from fedsvd.adapters.lora_xs import LoraXS
from fedsvd.adapters.milora import Milora
from fedsvd.adapters.olora import Olora
from fedsvd.adapters.pissa import Pissa
from fedsvd.adapters.plain import Lora
from fedsvd.adapters.sorsa import Sorsa
from fedsvd.adapters.svfit import SVFit
from fedsvd.adapters.xkv import Xkv

__all__ = [
    "Adapted",
    "Adapter",
    "Cayley",
    "Dct",
    "Dora",
    "Effort",
    "Eora",
    "Eva",
    "Gradient",
    "Hadamard",
    "Imbalanced",
    "Initialiser",
    "Inputs",
    "Kronecker",
    "Lora",
    "LoraGA",
    "LoraSB",
    "LoraXS",
    "Milora",
    "Olora",
    "Parametrisation",
    "Pissa",
    "SVFit",
    "Site",
    "Sorsa",
    "Spectrum",
    "Xkv",
]
