"""Hydra's part: where the configurations are, composing one."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fedsvd import complaints
from fedsvd.config import from_config
from fedsvd.errors import InputError
from fedsvd.settings import Settings


def config_folder() -> Path:
    """Return the folder of the configurations: in the installed package, or in the source tree."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def compose(overrides: list[str], *, hydra: bool = False) -> DictConfig:
    """Return the configuration that `python -m fedsvd.run` would compose from the overrides.

    With `hydra` Hydra's own part is in it. Raises InputError.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            return hydra_compose("config", overrides, return_hydra_config=hydra)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(explain(error)) from error


def settings_of(overrides: list[str]) -> Settings:
    """Return the settings of a command line of `python -m fedsvd.run`. Raises InputError."""
    return checked(compose(overrides))


def checked(config: DictConfig) -> Settings:
    """Return the settings of a composed configuration. Raises InputError."""
    return from_config(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


def explain(error: Exception) -> str:
    """Return Hydra's complaint as one line, with the nearest valid name if there is one."""
    return complaints.explain(error, config_folder())
