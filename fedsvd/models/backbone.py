"""Pretrained backbones and tokenisers, from packages, folders or the hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from fedsvd.data.sources import package_file
from fedsvd.errors import InputError
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
    if path.is_absolute() or settings.name.count("/") > 1 or settings.name.startswith("."):
        raise InputError(f"model.name: folder {settings.name!r} does not exist")
    if settings.package is not None:
        packaged = package_file(settings.package, settings.folder or "")
        if packaged is not None:
            return Source(str(packaged), f"package {settings.package}")
    return Source(settings.name, "hub")


def load_tokenizer(settings: ModelSettings) -> Any:
    """Return the tokeniser of the backbone; InputError if it cannot be loaded."""
    from transformers import AutoTokenizer

    folder = Path(locate(settings).location)
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZERS):
        raise InputError(
            f"model.name: {str(folder)!r} holds no tokeniser: none of {', '.join(TOKENIZERS)}"
        )
    return _load(settings, AutoTokenizer.from_pretrained)


def load_backbone(settings: ModelSettings) -> nn.Module:
    """Return the pretrained backbone in float32, frozen, in evaluation mode, on the CPU.

    Its dropout probabilities are `model.dropout`. Code shipped with a model is never run. Raises
    InputError if it cannot be loaded.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # no report on the unused pooler's weights
    config = _load(settings, AutoConfig.from_pretrained)
    for key in (
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "dropout",
        "attention_dropout",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
    ):
        if key in config.to_dict():
            setattr(config, key, settings.dropout)
    extra = {"add_pooling_layer": False} if config.model_type in ("bert", "roberta") else {}
    # Eager attention: on short texts its CPU backward takes half the time of the fused one.
    model = _load(
        settings,
        AutoModel.from_pretrained,
        config=config,
        dtype="float32",
        attn_implementation="eager",
        use_safetensors=True,  # other weights are pickles
        **extra,
    )
    _check_finite(model, settings.name)
    return model.eval().requires_grad_(False)


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


def _load(settings: ModelSettings, loader: Any, **kwargs: Any) -> Any:
    source = locate(settings)
    try:
        return loader(
            source.location, revision=settings.revision, trust_remote_code=False, **kwargs
        )
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"model.name: {settings.name!r} cannot be loaded: {reason}") from error
