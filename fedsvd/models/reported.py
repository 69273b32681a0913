"""What a loader reports of a checkpoint: which weights are missing, unexpected or of other sizes."""

import copy
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from fedsvd.errors import InputError

# Heads that are not called after a class of today's Transformers: own ones, and former names.
HEADS = {"classifier", "embed_out", "lm_head", "pre_classifier", "qa_outputs", "score"}
SHOWN = 4  # names in a message, before a count
# What wrappers put before every name: torch.compile, data parallelism, Lightning, PEFT.
WRAPPERS = re.compile(r"^(?:_orig_mod|module|model|base_model|_forward_module|net|backbone)\.")


def refuse_reported(name: str, model: nn.Module, report: Mapping[str, Any]) -> None:
    """Raise InputError unless the weights of `model` are those of the checkpoint, all of them.

    `report` is what `from_pretrained(..., output_loading_info=True)` gives beside a model. A missing
    or unexpected pooler is no fault, as nothing here uses one, nor are the weights of a head: what a
    class of Transformers for this configuration has beside the backbone.
    """
    missing = {k for k in report["missing_keys"] if not pooler(k)}
    unexpected = {k for k in report["unexpected_keys"] if not pooler(k)}
    if unexpected and not missing:
        heads = _heads(model)
        unexpected = {k for k in unexpected if k.split(".", 1)[0] not in heads}
    others = sorted(report["mismatched_keys"])
    found = []
    if others:
        key, theirs, ours = others[0]
        sizes = f"{key} is {tuple(theirs)} in the file and {tuple(ours)} by config.json"
        found.append(f"weights of other sizes: {_some([k for k, *_ in others], first=sizes)}")
    if missing:
        found.append(f"weights that are missing: {_some(missing)}")
    if unexpected:
        found.append(f"weights that the model has no place for: {_some(unexpected)}")
    found += [str(text).splitlines()[0] for text in report.get("error_msgs", ())][:1]
    if found:
        hint = _prefix(missing, unexpected, str(model.base_model_prefix))
        raise InputError(
            f"model.name: {name!r} does not hold the weights that its config.json describes: "
            f"{'; '.join(found)}{hint}"
        )


def pooler(key: str) -> bool:
    """Return whether a weight belongs to a pooler, of which no hidden state depends."""
    return any("pooler" in part for part in key.split("."))


def _some(keys: Collection[str], first: str = "") -> str:
    names = sorted(keys)
    shown = [first, *names[1:SHOWN]] if first else names[:SHOWN]
    more = len(names) - SHOWN
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _prefix(missing: Iterable[str], unexpected: Iterable[str], base: str) -> str:
    """Return a hint if missing weights are there, with one wrapper's prefix before each name.

    `base` is the backbone's own prefix, which a name may have behind it.
    """
    wanted, prefixes = set(missing), set()
    for key in unexpected:
        rest = key
        while match := WRAPPERS.match(rest):
            rest = rest[match.end() :]
            if {rest, rest.removeprefix(f"{base}.")} & wanted:
                prefixes.add(key.removesuffix(rest))
                break
    if len(prefixes) != 1:
        return ""
    (prefix,) = prefixes
    return f"; their names begin with {prefix!r}: save the weights again without this prefix"


def _heads(model: nn.Module) -> set[str]:
    """Return the names of what heads Transformers puts beside this backbone."""
    import transformers
    from transformers.models.auto import modeling_auto

    config: Any = model.config
    own: Any = model
    classes = {
        names[config.model_type]
        for key, names in vars(modeling_auto).items()
        if key.endswith("_MAPPING_NAMES") and isinstance(names, dict) and config.model_type in names
    }
    heads = set(HEADS)
    for name in sorted(str(c) for c in classes if isinstance(c, str)):
        try:
            with (
                torch.device("meta"),
                torch.random.fork_rng(devices=[]),
                warnings.catch_warnings(action="ignore"),
            ):
                whole = getattr(transformers, name)(copy.deepcopy(config))
        except Exception:  # one that cannot be built has no head to tell of
            continue
        heads |= {child for child, _ in whole.named_children()}
        heads |= {child for child, _ in whole.named_parameters(recurse=False)}
        heads |= {child for child, _ in whole.named_buffers(recurse=False)}
    body = {child for child, _ in own.named_children()}
    return heads - body - {own.base_model_prefix}
