"""Pretrained backbones and tokenisers, from packages, folders or the hub."""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from fedsvd.data.hub import hub_files, not_found
from fedsvd.data.prepared import hint
from fedsvd.data.sources import package_file
from fedsvd.errors import InputError, wrong
from fedsvd.models.reported import pooler, refuse_reported
from fedsvd.models.usable import usable
from fedsvd.settings import ModelSettings

TOKENIZERS = (
    "tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where a backbone is: `location` is what `from_pretrained` takes, `origin` a phrase."""

    location: str
    origin: str


def locate(settings: ModelSettings) -> Source:
    """Return where the weights of `model.name` are.

    A local folder is used as it is; otherwise an installed package that ships them; otherwise the
    hub. Raises InputError for a path that does not exist, or lacks weights.
    """
    path = Path(settings.name).expanduser()
    if path.is_dir():
        _check(path)
        return Source(str(path), "folder")
    if path.is_file():
        raise InputError(f"model.name: {settings.name!r} is a file; give the folder that holds it")
    if path.is_absolute() or settings.name.count("/") > 1 or settings.name.startswith("."):
        raise InputError(
            f"model.name: folder {settings.name!r} does not exist{hint(settings.name)}"
        )
    if settings.package is not None:
        packaged = package_file(settings.package, settings.folder or "")
        if packaged is not None:
            return Source(str(packaged), f"package {settings.package}")
    return Source(settings.name, "hub")


def written_name(settings: ModelSettings) -> str:
    """Return `model.name` as what a run leaves must hold it: a folder by its absolute path."""
    source = locate(settings)
    return os.path.abspath(source.location) if source.origin == "folder" else settings.name


def load_tokenizer(settings: ModelSettings) -> Any:
    """Return the tokeniser of the backbone, with an id that pads.

    Without a padding token that is the id of the end of a text: what padding holds reaches nothing.
    Raises InputError if it cannot be loaded, or has neither.
    """
    from transformers import AutoTokenizer

    folder = Path(locate(settings).location)
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZERS):
        raise InputError(
            f"model.name: {str(folder)!r} holds no tokeniser: none of {', '.join(TOKENIZERS)}"
        )
    tokenizer = _load(settings, AutoTokenizer.from_pretrained, "its tokeniser ")
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise InputError(
            f"model.name: the tokeniser of {settings.name!r} has neither a padding token nor an end "
            "token; give it one (pad_token in tokenizer_config.json)"
        )
    return tokenizer


def load_backbone(settings: ModelSettings) -> nn.Module:
    """Return the pretrained backbone in float32, frozen, in evaluation mode, on the CPU.

    Of an encoder-decoder that needs texts for its decoder it is the encoder. Raises InputError as
    `load_pretrained` does, and if it cannot run.
    """
    from transformers import AutoModel, AutoModelForTextEncoding

    def kind(config: Any) -> Any:
        return AutoModelForTextEncoding if _encoder(config) else AutoModel

    return usable(settings.name, load_pretrained(settings, kind)).requires_grad_(False)


def outlined(settings: ModelSettings, kind: Any = None) -> nn.Module:
    """Return a model of the backbone's class from its config.json, frozen, in evaluation mode.

    Its weights hold what Transformers draws, and under `FakeTensorMode` nothing. `kind` is a class of
    Transformers' for configurations, by default that of backbones. Raises InputError.
    """
    from transformers import AutoModel, AutoModelForTextEncoding

    config = _config(settings)
    config.use_cache = False
    kind = kind or (AutoModelForTextEncoding if _encoder(config) else AutoModel)
    found: nn.Module = kind.from_config(
        config, attn_implementation=attention_of(settings), **_without_pooler(config, kind)
    )
    return found.eval().requires_grad_(False)


def load_pretrained(settings: ModelSettings, kind: Any) -> nn.Module:
    """Return a pretrained model in float32, frozen, in evaluation mode, on the CPU.

    `kind` gives the class of Transformers' for a configuration. Dropout probabilities are
    `model.dropout`. Code shipped with a model is never run. Raises InputError if it cannot be loaded,
    or if its weights are not those that its configuration describes.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what it reports is looked at below
    config = _config(settings)
    model, report = _load(
        settings,
        kind(config).from_pretrained,
        config=config,
        dtype="float32",
        attn_implementation=attention_of(settings),
        use_safetensors=True,  # other weights are pickles
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused, by name
        **_without_pooler(config, kind(config)),
    )
    refuse_reported(settings.name, model, report)
    _check_finite(model, settings.name)
    _check_precision(settings.name, model)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name in report["missing_keys"] and pooler(name):
                value.zero_()  # an unused pooler, which Transformers draws anew in every process
    found: nn.Module = model.eval().requires_grad_(False)
    return found


def _without_pooler(config: Any, kind: Any) -> dict[str, Any]:
    """Return what a loader of a backbone is told so that it makes no pooler, which nothing reads."""
    if config.model_type in ("bert", "roberta") and kind.__name__ == "AutoModel":
        return {"add_pooling_layer": False}
    return {}


def attention_of(settings: ModelSettings) -> str:
    """Return Transformers' name of the attention that a model gets.

    "auto" is fused attention where there is a CUDA device, else eager: on short texts its backward
    pass on the CPU takes half the time of the fused one. Raises InputError for one that is not there.
    """
    from transformers.utils import is_flash_attn_2_available

    chosen = settings.attention
    if chosen == "auto":
        return "sdpa" if torch.cuda.is_available() else "eager"
    if chosen == "flash_attention_2" and not is_flash_attn_2_available():
        raise wrong(
            "model.attention", chosen,
            "eager, sdpa or auto here: it needs the package flash_attn and a CUDA device",
        )  # fmt: skip
    return chosen


def _config(settings: ModelSettings) -> Any:
    from transformers import AutoConfig
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KNOWN

    config = _load(settings, AutoConfig.from_pretrained, "its config.json ")
    quantised = getattr(config, "quantization_config", None)
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    if method is not None and method not in (*KNOWN, "bitsandbytes"):  # Transformers ignores it
        raise InputError(
            f"model.name: {settings.name!r} cannot be loaded: it is quantised by {method!r}, which "
            "Transformers does not know; take the model before quantisation"
        )
    for key, value in config.to_dict().items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if "dropout" in key or "pdrop" in key:
            setattr(config, key, settings.dropout)
        elif "layerdrop" in key:  # whole layers, by one draw for a batch
            setattr(config, key, 0.0)
    return config


def _encoder(config: Any) -> bool:
    """Return whether the weights are those of a class that is the encoder alone (T5EncoderModel)."""
    from transformers.models.auto import modeling_auto as auto

    kind = config.model_type
    name = auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.get(kind)
    other = auto.MODEL_MAPPING_NAMES.get(kind)
    return name is not None and name != other and name in (config.architectures or ())


def _check_precision(name: str, model: nn.Module) -> None:
    """Raise InputError if weights are not plain float32: what is quantised cannot be merged."""
    for key, p in model.named_parameters():
        if p.dtype != torch.float32:
            raise InputError(
                f"model.name: {name!r} holds quantised weights ({key}: {p.dtype}); take the model "
                "before quantisation"
            )


def _check_finite(model: nn.Module, name: str) -> None:
    """Raise InputError that names the first weight that is not finite: nothing could train on it."""
    for key, value in model.named_parameters():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            odd = int((~value.isfinite()).sum())
            raise InputError(
                f"model.name: {name!r} holds {odd} of {value.numel()} numbers in {key} that are not "
                "finite (NaN or infinite)"
            )


def _check(folder: Path) -> None:
    """Refuse a model folder in which something is missing or damaged, which loaders may let pass."""
    if not (folder / "config.json").is_file():
        raise InputError(f"model.name: {str(folder)!r} holds no config.json")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = " (files of pickles are not read)" if list(folder.glob("*.bin")) else ""
        raise InputError(f"model.name: {str(folder)!r} holds no .safetensors file{pickled}")
    for file in weights:
        try:
            with safe_open(str(file), "pt"):
                pass
        except (OSError, SafetensorError) as error:
            reason = str(error).splitlines()[0][:200]
            raise InputError(f"model.name: {file} cannot be loaded: {reason}") from error
    _check_shards(folder)


def _check_shards(folder: Path) -> None:
    """Refuse a folder that lacks files which its own list of them names."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file() or (folder / "model.safetensors").is_file():
        return
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        lacking = sorted(n for n in names if not (folder / n).is_file())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"model.name: {index} is no list of weight files") from error
    if lacking:
        raise InputError(
            f"model.name: {str(folder)!r} lacks {lacking[0]}, which {index.name} names "
            f"({len(lacking)} of {len(names)} files are missing)"
        )


def _load(settings: ModelSettings, loader: Any, what: str = "", **kwargs: Any) -> Any:
    source = locate(settings)
    hub = hub_files() if source.origin == "hub" else contextlib.nullcontext()
    with hub as why:
        try:
            return loader(
                source.location, revision=settings.revision, trust_remote_code=False, **kwargs
            )
        except (MemoryError, InputError):
            raise
        except BaseException as error:
            # Loaders raise what they like; Rust's panics (tokenisers) are no Exceptions.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason = " ".join((str(error).strip() or type(error).__name__).split())[:200]
            reason = f"{what}{reason}"
            if source.origin == "hub" and isinstance(error, OSError):
                reason = f"there is no such folder here; {not_found(why, reason)}"
            raise InputError(f"model.name: {settings.name!r} cannot be loaded: {reason}") from error
