"""The configuration as checked, immutable data.

Hydra composes a tree of plain values; `fedsvd.config` turns it into `Settings` or raises InputError
that names the key, the value and what is allowed. Nothing here imports torch or Flower, so a wrong
configuration is refused in about a second.
"""

from fedsvd.settings.attack import ATTACKS, AttackSettings
from fedsvd.settings.averaging import AVERAGING, AveragingSettings
from fedsvd.settings.clients import PARTICIPATION, ClientSettings, TrainingSettings
from fedsvd.settings.data import DataSettings, PartitionSettings
from fedsvd.settings.engine import EngineSettings, RecorderSettings
from fedsvd.settings.faults import FaultSettings
from fedsvd.settings.model import HEADS, INITS, AdapterSettings, ModelSettings
from fedsvd.settings.privacy import THREAT_MODELS, UNITS, PrivacySettings
from fedsvd.settings.run import Settings, StrategySettings

__all__ = [
    "ATTACKS",
    "AVERAGING",
    "HEADS",
    "INITS",
    "PARTICIPATION",
    "THREAT_MODELS",
    "UNITS",
    "AdapterSettings",
    "AttackSettings",
    "AveragingSettings",
    "ClientSettings",
    "DataSettings",
    "EngineSettings",
    "FaultSettings",
    "ModelSettings",
    "PartitionSettings",
    "PrivacySettings",
    "RecorderSettings",
    "Settings",
    "StrategySettings",
    "TrainingSettings",
]
