"""Aggregation rules, one a file, over `fedsvd.lowrank`."""

from fedsvd.strategies.base import Strategy, Update
from fedsvd.strategies.fedavg import FedAvg
from fedsvd.strategies.fedsvd import FedSVD
from fedsvd.strategies.ffa import FFA

__all__ = ["FFA", "FedAvg", "FedSVD", "Strategy", "Update"]
