"""A trial's configuration: what all trials share, with the overrides of one."""

from collections.abc import Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from fedsvd.config import from_config
from fedsvd.data.needed import check_needed
from fedsvd.settings import Settings


def compose_trial(
    loader: ConfigLoader, config: DictConfig, given: Sequence[str], number: int
) -> DictConfig:
    """Return Hydra's configuration of trial `number`, whose own overrides are `given`."""
    composed = loader.load_sweep_config(config, list(given))
    with open_dict(composed):
        composed.hydra.job.id = str(number)
        composed.hydra.job.num = number
    return composed


def plain(composed: DictConfig) -> dict[Any, Any]:
    """Return the run's part of a trial's configuration, resolved."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(composed)  # for what the settings take from ${hydra:...}
    try:
        groups = [str(key) for key in composed if key != "hydra"]
        values = OmegaConf.to_container(OmegaConf.masked_copy(composed, groups), resolve=True)
    finally:
        HydraConfig.instance().cfg = before
    assert isinstance(values, dict)
    return values


def checked(values: dict[Any, Any]) -> Settings:
    """Return a trial's settings; InputError for all that can be seen without PyTorch."""
    settings = from_config(values)
    if settings.partition.name != "own":
        check_needed(settings)
    return settings
