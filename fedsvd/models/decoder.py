"""Pretrained causal language models: their decoder, and what makes logits of its hidden states."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from fedsvd.errors import InputError
from fedsvd.models.backbone import load_pretrained
from fedsvd.models.language_model import capped
from fedsvd.models.usable import usable, vocabulary
from fedsvd.privacy.exactness import TOLERANCE
from fedsvd.settings import ModelSettings

LENGTH = 6  # tokens of the question that a model is asked


@final
@dataclass(frozen=True)
class Output:
    """logits = cap(scale * head(hidden)): a pretrained model's own output layer and what follows."""

    head: nn.Module
    scale: float
    cap: float | None


def load_language_model(settings: ModelSettings) -> nn.Module:
    """Return the pretrained model with its output layer, in float32, frozen, on the CPU.

    Raises InputError as `fedsvd.models.backbone.load_backbone` does, and for what is no causal
    language model here: tokens that see later ones, or logits that are not its output layer's.
    """
    from transformers import AutoModelForCausalLM

    model = load_pretrained(settings, lambda _: AutoModelForCausalLM)
    known: Any = model
    known.config.use_cache = False  # what it keeps of earlier tokens serves generation alone
    body = body_of(model)
    if body is model:
        raise InputError(
            f"model.name: {settings.name!r} has no decoder apart from its output layer"
        )
    usable(settings.name, body)
    why = _fault(model, body, vocabulary(settings.name, body))
    if why:
        raise InputError(f"model.name: {settings.name!r} is no causal language model here: {why}")
    return model


def body_of(model: nn.Module) -> nn.Module:
    """Return the decoder of a model with an output layer."""
    known: Any = model
    body: nn.Module = known.base_model
    return body


def output_of(model: nn.Module) -> Output:
    """Return what makes logits of the decoder's hidden states.

    Gemma caps them (`final_logit_softcapping`), Cohere multiplies (`logit_scale`), Granite divides
    (`logits_scaling`).
    """
    known: Any = model
    config = known.config
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return Output(known.get_output_embeddings(), scale, None if cap is None else float(cap))


@torch.no_grad()
def _fault(model: nn.Module, body: nn.Module, size: int) -> str:
    """Return why the logits of two random texts are not those of a causal model, or ""."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(size, (2, LENGTH), generator=generator)
    ids[1, :-1] = ids[0, :-1]
    ids[1, -1] = (ids[0, -1] + 1) % size
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    output = output_of(model)
    if not isinstance(output.head, nn.Linear):
        return "it has no linear output layer"
    try:
        with torch.random.fork_rng(devices=[]):
            logits = model(**inputs).logits
            hidden = body(**inputs).last_hidden_state
        ours = capped(output.scale * output.head(hidden), output.cap)
    except Exception as error:  # a model may raise anything
        said = (str(error).strip().splitlines() or [""])[0][:200]
        return f"it raises {type(error).__name__}: {said}"
    if not _near(logits[0, :-1], logits[1, :-1]):
        return "what it says of a token depends on later ones"
    if logits.shape != ours.shape or not _near(ours, logits):
        return "its logits are not what its output layer makes of its last hidden states"
    return ""


def _near(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).norm() / expected.norm()) < TOLERANCE
