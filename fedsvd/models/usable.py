"""Whether a backbone can be used here at all: measured by running it, before any work."""

import inspect
from typing import Any, final

import torch
from torch import Tensor, nn

from fedsvd.data.tokens import Tokens
from fedsvd.errors import InputError

LENGTH = 4  # tokens of the first question


@final
class EncoderAlone(nn.Module):
    """The encoder of an encoder-decoder, with the names that its layers have in the whole model."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        model: Any = whole
        self.encoder = model.get_encoder()
        self.config = model.config
        object.__setattr__(self, "_whole", whole)  # not a part: kept to be saved again

    def forward(self, **inputs: Tensor) -> Any:
        """Return what the encoder returns, with `last_hidden_state` (n, t, d)."""
        return self.encoder(**inputs)

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of token embeddings."""
        whole: Any = self._whole
        return whole.get_input_embeddings()

    def save_pretrained(self, folder: str) -> None:
        """Write the whole model, so that it loads as it did."""
        whole: Any = self._whole
        whole.save_pretrained(folder)


def usable(name: str, model: nn.Module) -> nn.Module:
    """Return the model, or of an encoder-decoder that cannot run on one text its encoder alone.

    Raises InputError unless it gives finite `last_hidden_state` (1, t, d) for t tokens, with d the
    configuration's hidden size, on which the heads are built.
    """
    why = _fault(model, _question(model))
    config: Any = model.config
    if why and getattr(config, "is_encoder_decoder", False) and hasattr(model, "get_encoder"):
        try:
            alone = EncoderAlone(model)
        except Exception:  # the fault of the whole model is told
            alone = None
        if alone is not None and not _fault(alone, _question(model)):
            return alone.eval()
    if why:
        raise InputError(f"model.name: {name!r} cannot be used as a backbone of texts: {why}")
    return model


def fit_tokenizer(name: str, model: nn.Module, tokenizer: Any) -> None:
    """Let the tokeniser give what the model takes: no token types to one that has none.

    Raises InputError if it has ids for which the model has no embedding.
    """
    rows, ids = vocabulary(name, model), tokenizer.get_vocab()
    largest = max(ids, key=ids.__getitem__, default="")
    if ids and ids[largest] >= rows:
        raise InputError(
            f"model.name: the tokeniser of {name!r} gives ids up to {ids[largest]} ({largest!r}), "
            f"its model has embeddings for {rows} alone: they do not belong together"
        )
    body = model.encoder if isinstance(model, EncoderAlone) else model
    if "token_type_ids" not in inspect.signature(body.forward).parameters:
        given = tokenizer.model_input_names
        tokenizer.model_input_names = [n for n in given if n != "token_type_ids"]


def taken(name: str, model: nn.Module, tokens: Tokens) -> int:
    """Return how many tokens of a text the model can take: the longest text's if that runs.

    The model must be on the CPU: an index beyond a table ends a CUDA device's work for good. Raises
    InputError if it runs on no text at all.
    """
    longest = int(tokens.lengths.argmax())
    length = int(tokens.lengths[longest])
    inputs = tokens.batch([longest]).inputs
    why = _fault(model, inputs)
    if not why:
        return length
    most = _most(model, inputs, length)
    if most < min(LENGTH, length):
        raise InputError(f"model.name: {name!r} cannot run on what its tokeniser gives: {why}")
    return most


def vocabulary(name: str, model: nn.Module) -> int:
    """Return how many tokens the model has embeddings for; InputError if it has no table of them."""
    known: Any = model
    try:
        return int(known.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError, TypeError) as error:
        raise InputError(f"model.name: {name!r} has no table of token embeddings") from error


def _question(model: nn.Module) -> dict[str, Tensor]:
    """Return one text of four tokens, none of them the padding's."""
    config: Any = model.config
    pad = getattr(config, "pad_token_id", None)
    ids = [i for i in range(LENGTH + 1) if i != pad][:LENGTH]
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, LENGTH).long()}


@torch.no_grad()
def _fault(model: nn.Module, inputs: dict[str, Tensor]) -> str:
    """Return why the model cannot run on the inputs, or "" if it can."""
    config: Any = model.config
    size = getattr(config, "hidden_size", None)
    if not isinstance(size, int):
        return "its config.json has no hidden size"
    try:
        with torch.random.fork_rng(devices=[]):
            hidden = model(**inputs).last_hidden_state
    except Exception as error:  # a model may raise anything
        said = (str(error).strip().splitlines() or [""])[0][:200]
        return f"it raises {type(error).__name__}: {said}"
    expected = (*inputs["input_ids"].shape, size)
    if tuple(hidden.shape) != expected:
        return f"it gives hidden states of shape {tuple(hidden.shape)}, not {expected}"
    return "" if bool(hidden.isfinite().all()) else "its hidden states are not finite"


def _most(model: nn.Module, inputs: dict[str, Tensor], length: int) -> int:
    """Return the largest number of tokens with which the model runs, below `length`."""
    fits, fails = 0, length
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if _fault(model, {n: t[:, :middle] for n, t in inputs.items()}):
            fails = middle
        else:
            fits = middle
    return fits
