"""What a finished run's folder says of its model, and the pretrained parts found again."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fedsvd.errors import InputError
from fedsvd.exports.export import MERGED
from fedsvd.models.backbone import load_tokenizer, locate
from fedsvd.models.digest import vocabulary_digest, weights_digest
from fedsvd.settings import ModelSettings

PLACE = ("package", "folder", "revision", "max_length")


def description(
    folder: Path, inner: str, file: str, more: Sequence[str] = ()
) -> tuple[dict[str, Any], ModelSettings]:
    """Return what a run's `inner`/`file` says, and the model's settings, with `more` of their keys.

    Raises InputError if the folder holds no finished run.
    """
    try:
        told = json.loads((folder / inner / file).read_text(encoding="utf-8"))
        model = ModelSettings(name=told["model"], **{k: told[k] for k in (*PLACE, *more)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: holds no finished run ({inner}/{file})") from error
    return told, model


def put_together(
    folder: Path, told: Mapping[str, Any], model: ModelSettings,
    read: Callable[[ModelSettings], nn.Module], body: Callable[[nn.Module], nn.Module] = lambda m: m,
) -> tuple[nn.Module, Any]:  # fmt: skip
    """Return the model without its adapter, merged if that is what the run left, and its tokeniser.

    `read` loads it, `body` is the part of it whose weights a run's digest is of. Raises InputError if
    they are not what the run was trained on.
    """
    own = replace(model, name=str(folder / MERGED), package=None, revision=None)
    merged = bool(told.get("merged"))
    found, tokenizer = read(own if merged else model), load_tokenizer(model)
    # Runs of earlier versions hold no digests.
    if not merged and told.get("weights"):
        _same(folder, model, "weights", told["weights"], weights_digest(body(found)))
    if told.get("vocabulary"):
        _same(folder, model, "vocabulary", told["vocabulary"], vocabulary_digest(tokenizer))
    return found, tokenizer


def with_adapter(folder: Path, told: Mapping[str, Any], model: nn.Module) -> nn.Module:
    """Return the model with what `adapter/` holds, if the run left one."""
    if not told["adapter"]:
        return model
    from peft import PeftModel

    if not (folder / "adapter" / "adapter_model.safetensors").is_file():
        raise InputError(f"{folder}: adapter/ holds no adapter_model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing key is only a warning in PEFT
        warnings.filterwarnings("ignore", category=FutureWarning)
        known: Any = model
        found: nn.Module = PeftModel.from_pretrained(known, str(folder / "adapter")).eval()
        return found


def _same(folder: Path, model: ModelSettings, what: str, then: str, now: str) -> None:
    """Raise InputError unless the base model found is the one that was trained on."""
    if then != now:
        raise InputError(
            f"{folder}: the {what} of {locate(model).location!r} are not those that the run was "
            f"trained on (SHA-256 {now[:12]}, then {then[:12]})"
        )
