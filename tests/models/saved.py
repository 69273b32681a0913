"""Tiny models and tokenisers in folders, and what spoils them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tests.tiny import WORDS

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip


def save_model(folder: Path, cls=BertModel, config=None, **more) -> Path:
    """Write a random model of the sizes above, and a tokeniser of words."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cls(BertConfig(**SIZES) if config is None else config, **more).save_pretrained(folder)
    save_words(folder)
    return folder


def save_words(folder: Path, words=WORDS, pad="[PAD]", unknown=None, **more) -> None:
    """Write a tokeniser that splits at blanks and drops, or marks, what is no word of its own."""
    special = [t for t in (pad, unknown, *more.values()) if t is not None]
    ids = {w: i for i, w in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown or "nothing"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(_pattern(words, unknown), "removed", invert=True)
    names = {"pad_token": pad, "unk_token": unknown, **more}
    given = {k: v for k, v in names.items() if v is not None}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **given).save_pretrained(folder)


def _pattern(words, unknown):
    from tokenizers import Regex

    return Regex(r"\S+") if unknown else Regex(r"\b(" + "|".join(words) + r")\b")


def change_weights(folder: Path, change) -> None:
    """Write the weights again, as `change` of the dictionary of tensors returns them."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def change_config(folder: Path, **changes) -> None:
    """Write config.json again with other values."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
