"""What a model does with random tokens, asked before anything is attached to it."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedsvd.data.tokens import Tokens
from fedsvd.errors import InputError
from fedsvd.models.base import Model
from fedsvd.models.usable import vocabulary
from fedsvd.objectives.base import Objective
from fedsvd.randomness import Purpose, torch_stream

SEED = 0  # the same question whatever a run's seed
SHORT = 16  # tokens, enough to see what depends on what
LENGTHS = (3, 7, 13, 5)  # of random texts, before one of the longest that is allowed


def some_tokens(
    name: str, backbone: nn.Module, tokens: Tokens, longest: int, classes: int,
    objective: Objective,
) -> Tokens:  # fmt: skip
    """Return five random texts of unequal lengths, one of `longest` or of what the model takes.

    They look like `tokens`, whose columns and padding they have, and hold nothing of them; what they
    are trained to say is random too. `name` is the model's, for InputError.
    """
    model: Any = backbone
    pad, places = tokens.pad_id, getattr(model.config, "max_position_embeddings", None)
    if isinstance(places, int) and places > 0:
        longest = min(longest, max(4, places - pad - 1))  # RoBERTa counts from the padding's id
    lengths = [min(t, longest) for t in (*LENGTHS, longest)]
    return random_tokens(name, backbone, tokens, lengths, classes, objective)


def random_tokens(
    name: str, backbone: nn.Module, tokens: Tokens, lengths: Sequence[int], classes: int,
    objective: Objective,
) -> Tokens:  # fmt: skip
    """Return random texts of these lengths, as `some_tokens` does."""
    model: Any = backbone
    pad = tokens.pad_id
    generator = torch_stream(SEED, Purpose.CHECK, "tokens")
    size = vocabulary(name, model)
    drawn = [torch.randint(size - 1, (t,), generator=generator) for t in lengths]
    columns = {"input_ids": [ids + (ids >= pad).long() for ids in drawn]}  # any but padding
    if "token_type_ids" in tokens.columns:
        columns["token_type_ids"] = [(torch.arange(t) >= t // 2).long() for t in lengths]
    none = torch.zeros(len(lengths), dtype=torch.int64)
    found = Tokens(columns, none, torch.tensor(lengths), pad)
    return objective.random(found, classes, generator)


def unreached(model: Model, layers: Iterable[str], tokens: Tokens, name: str) -> list[str]:
    """Return which of the backbone's `layers` the features (n, d) do not depend on.

    Measured by one backward pass from a random projection of the features of `tokens`, in float32:
    what a layer puts out gets no gradient, or zero at every token, where nothing that is attached to
    it could learn (an unused pooler; a layer whose weight is read without calling it). Raises
    InputError with the model's `name` if it cannot be run, or the features are not finite.
    """
    named = dict(model.backbone.named_modules())
    device = next(model.backbone.parameters()).device
    seen: dict[str, list[Tensor]] = {layer: [] for layer in layers}

    def watch(layer: str) -> Any:
        def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            probe = torch.zeros_like(output, requires_grad=True)
            seen[layer].append(probe)
            return output + probe

        return named[layer].register_forward_hook(add)

    handles = [watch(layer) for layer in seen]
    precision, model.precision = model.precision, "fp32"
    try:
        with torch.enable_grad():
            features = model.features(tokens.batch(range(len(tokens.labels)), device).inputs)
    except Exception as error:  # whatever a model does that is not made for texts alone
        said = (str(error).strip().splitlines() or [""])[0][:200]
        raise InputError(
            f"model.name: {name!r} fails on random token ids: {type(error).__name__}: {said}"
        ) from error
    finally:
        model.precision = precision
        for handle in handles:
            handle.remove()
    if not bool(features.isfinite().all()):
        raise InputError(
            f"model.name: {name!r} makes numbers that are not finite of random tokens; nothing could "
            "train on them"
        )
    probes = [probe for found in seen.values() for probe in found]
    if not features.requires_grad:
        return list(seen)
    generator = torch_stream(SEED, Purpose.CHECK, "projection")
    along = torch.randn(features.shape, generator=generator).to(features)
    gradients = torch.autograd.grad((features * along).sum(), probes, allow_unused=True)
    moved = {id(p) for p, g in zip(probes, gradients, strict=True) if g is not None and g.any()}
    return [layer for layer, found in seen.items() if not any(id(p) in moved for p in found)]
