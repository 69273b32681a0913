"""A finished run's folder to a repository of the hub; refused where its noise can be taken away."""

import json
from pathlib import Path

from fedsvd.errors import InputError
from fedsvd.exports.export import ADAPTER, MERGED

TRANSFORMERS = "transformers"


def publish(run: Path | str, repository: str, private: bool = True) -> str:
    """Upload `transformers/`, `adapter/` or `merged/` of a run, with its card; return the address.

    The first of them that is there is taken. Nothing else of the run folder is sent. Raises
    InputError if the folder holds none, or if the run's noise follows from its seed: whoever knows
    that could take the noise off a model that is published.
    """
    folder = Path(run)
    found = [folder / name for name in (TRANSFORMERS, ADAPTER, MERGED) if (folder / name).is_dir()]
    if not found:
        raise InputError(f"{folder}: holds nothing to publish (adapter/ or merged/)")
    check_noise(folder)
    from huggingface_hub import HfApi

    api = HfApi()
    made = api.create_repo(repository, private=private, exist_ok=True)
    api.upload_folder(repo_id=repository, folder_path=str(found[0]))
    return str(made)


def check_noise(folder: Path) -> None:
    """Raise InputError if the run is private and its noise is repeatable, or nothing says so."""
    try:
        told = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        private, source = told["epsilon_max"] is not None, str(told["noise_source"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: holds no finished run (summary.json)") from error
    if private and source.startswith("from the run's seed"):
        raise InputError(
            f"{folder}: its noise is {source}; run it with privacy.secure_noise=true to publish it"
        )
