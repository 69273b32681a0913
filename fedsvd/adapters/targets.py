"""Which linear layers of a backbone an adapter is put on, and with which rank."""

import math
import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

from torch import nn

from fedsvd.adapters.adapted import LINEAR
from fedsvd.adapters.blocks import find_blocks
from fedsvd.adapters.stored import shape_of
from fedsvd.errors import InputError, wrong
from fedsvd.settings import AdapterSettings
from fedsvd.settings.model import UPPER_THIRD

# What the families of Transformers call the projections that BERT calls query and value; in GPT-2
# they are parts of one layer.
FAMILIES: Mapping[str, Mapping[str, str]] = {
    "distilbert": {"query": "q_lin", "key": "k_lin", "value": "v_lin"},
    "llama": {"query": "q_proj", "key": "k_proj", "value": "v_proj"},
    "gpt2": {"query": "c_attn", "key": "c_attn", "value": "c_attn"},
}
ALL = "all"
BLOCK = re.compile(r"(?<![^.])\d+(?![^.])")  # a whole part of a path


def find_layers(
    backbone: nn.Module, settings: AdapterSettings, unreached: Collection[str] = ()
) -> dict[str, int]:
    """Return the ranks of the layers to adapt, by their paths, in the backbone's order.

    An entry of `adapter.targets` is the last part (or parts) of a layer's path, a pattern with *, ?
    or [] for the whole path, or "all". "query", "key" and "value" also mean what DistilBERT, Llama
    and GPT-2 call them; in other families "query" and "value" each mean what PEFT adapts there by its
    own table (Qwen, Mistral, Gemma, Phi, ...). `adapter.ranks` maps such names or patterns to ranks;
    the last that fits a layer counts; where `adapter.rank` is null, a layer without such a name gets
    the smaller of its sizes. Layers that are `unreached`, as no gradient gets there, are left out,
    and so are those outside the blocks of `adapter.layers`. Raises InputError if an entry fits no
    linear layer or only unreached ones, there are no such blocks, or a rank exceeds its sizes.
    """
    linear = {n: m for n, m in backbone.named_modules() if isinstance(m, LINEAR)}
    kind = str(getattr(getattr(backbone, "config", None), "model_type", ""))
    chosen: set[str] = set()
    for target in settings.targets:
        fitting = _matching("adapter.targets", target, linear, kind)
        chosen.update(name for name in fitting if name not in unreached)
        if all(name in unreached for name in fitting):
            raise InputError(
                f"adapter.targets: {target!r} fits only {', '.join(fitting)}, which gets no "
                "gradient: what the model puts out does not depend on it; name other layers"
            )
    if settings.layers is not None:
        chosen = _in_upper(backbone, chosen, settings.layers)
    ranks = {
        name: min(shape_of(module)) if settings.rank is None else settings.rank
        for name, module in linear.items()
        if name in chosen
    }
    for pattern, rank in (settings.ranks or {}).items():
        fitting = [n for n in _matching("adapter.ranks", pattern, linear, kind) if n in ranks]
        if not fitting:
            raise wrong("adapter.ranks", pattern, "a name or pattern of a layer in adapter.targets")
        ranks.update(dict.fromkeys(fitting, rank))
    for name, rank in ranks.items():
        sizes = shape_of(linear[name])
        if rank > min(sizes):
            raise wrong("adapter.rank", rank, f"at most {min(sizes)} ({name})")
    return ranks


def groups_of(backbone: nn.Module, names: Collection[str], size: int) -> dict[str, tuple[str, ...]]:
    """Return for each named layer those of its group, itself among them, in the backbone's order.

    A group are the linear layers of one shape whose paths differ in their first number alone, the
    block's, from a multiple of `size` on: blocks 0 to size - 1, size to 2 size - 1, and so on. They
    belong to it whether they are named or not, so that a layer's group does not depend on the others.
    """
    if size == 1:
        return {name: (name,) for name in names}
    groups: dict[object, list[str]] = {}
    keys = {}
    for name, module in backbone.named_modules():
        if isinstance(module, LINEAR):
            block = BLOCK.search(name)
            place = (name,) if block is None else (BLOCK.sub("*", name, 1), int(block[0]) // size)
            keys[name] = (*place, shape_of(module))
            groups.setdefault(keys[name], []).append(name)
    return {name: tuple(groups[keys[name]]) for name in names}


def _in_upper(backbone: nn.Module, chosen: Collection[str], layers: str) -> set[str]:
    """Return which of the chosen layers are in the last blocks, as `adapter.layers` counts them."""
    blocks = find_blocks(backbone, chosen)
    if blocks is None:
        raise InputError(
            f"adapter.layers: {layers!r} needs a model whose targeted layers are in a list of blocks;"
            " set null"
        )
    number = len(blocks.modules)
    last = math.ceil(number / 3) if layers == UPPER_THIRD else int(layers)
    if last > number:
        raise wrong("adapter.layers", last, f"at most {number}, the blocks in {blocks.path}")
    places = {name: blocks.number(name) for name in chosen}
    kept = {name for name, at in places.items() if at is not None and at >= number - last}
    if not kept:
        raise InputError(
            f"adapter.layers: no layer of adapter.targets is in the last {last} of {number} blocks in"
            f" {blocks.path}"
        )
    return kept


def _matching(key: str, target: str, linear: Mapping[str, nn.Module], kind: str) -> list[str]:
    family = FAMILIES.get(kind, {})
    if target == ALL:
        return list(linear)
    found = [n for n in linear if _fits(n, target)]
    if not found and target in family:
        found = [n for n in linear if _fits(n, family[target])]
    if not found and target in ("query", "value"):
        found = _usual(kind, linear)
    if not found:
        names = sorted({n.rsplit(".", 1)[-1] for n in linear})
        raise InputError(
            f"{key}: no linear layer of the model is called {target!r}; it has {', '.join(names)}"
        )
    return found


def _usual(kind: str, linear: Collection[str]) -> list[str]:
    """Return which layers PEFT adapts in a family of models where nobody names any.

    Its table holds last parts of paths for most families, and for some a regular expression.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    known = KNOWN.get(kind, ())
    if isinstance(known, str):
        return [name for name in linear if re.fullmatch(known, name)]
    return [name for name in linear if any(_fits(name, usual) for usual in known)]


def _fits(name: str, target: str) -> bool:
    if any(c in target for c in "*?["):
        return fnmatchcase(name, target)
    return name == target or name.endswith(f".{target}")
