"""Blocks that are computed again on the way back, so that only what enters them stands in memory.

Gradient checkpointing (Chen et al., 2016, arXiv 1604.06174) by a function of ours. In its forward
pass gradients are off, so that the hooks of per-example gradients see nothing; they see the second
pass, whose own backward pass follows at once. What a block looks at beside its inputs comes back with
it: which tokens are padding, dropout masks, random generators, autocast.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, final

import torch
from torch import Tensor, nn

from fedsvd.adapters.blocks import find_blocks
from fedsvd.client.dropout import standing
from fedsvd.data.tokens import Tokens
from fedsvd.errors import wrong
from fedsvd.models.base import Model
from fedsvd.objectives.base import Objective
from fedsvd.privacy.exactness import TOLERANCE, farthest
from fedsvd.privacy.hooks import Hooks

KEY = "training.gradient_checkpointing"


class _Again(torch.autograd.Function):
    """A block's output, of which only the input is kept. `anchor` is there to ask for gradients."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, hidden: Tensor, run: Any, around: Any) -> Tensor:
        ctx.run, ctx.around = run, around
        ctx.save_for_backward(hidden)
        found: Tensor = run(hidden)
        return found.view_as(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, None, None]:
        hidden = ctx.saved_tensors[0].detach().requires_grad_(ctx.needs_input_grad[1])
        with torch.enable_grad(), ctx.around():
            out = ctx.run(hidden)
        torch.autograd.backward(out, grad)
        return None, hidden.grad, None, None


@final
class Recomputed:
    """Takes the place of the blocks' `forward`; names, hooks and modes of modules stay as they are.

    A block must take its hidden states as the first argument or as `hidden_states`, and return them
    alone, or as the first of a tuple whose other entries need no gradient.
    """

    def __init__(self, model: Model, blocks: Sequence[nn.Module]) -> None:
        self._model, self._blocks = model, list(blocks)
        for block in self._blocks:
            known: Any = block
            known.forward = self._wrapped(known, known.forward)

    def remove(self) -> None:
        """Give every block its own `forward` back."""
        for block in self._blocks:
            block.__dict__.pop("forward", None)

    def _wrapped(self, block: nn.Module, real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            trains = any(p.requires_grad for p in block.parameters())
            if not torch.is_grad_enabled() or not (trains or hidden.requires_grad):
                return real(*args, **kwargs)
            if any(
                isinstance(v, Tensor) and v.requires_grad for v in (*args[1:], *kwargs.values())
                if v is not hidden
            ):  # fmt: skip
                raise TypeError("a block takes more than hidden states that need gradients")
            rest: list[Any] = []

            def run(x: Tensor) -> Tensor:
                given = real(x, *args[1:], **kwargs) if args else real(
                    **{**kwargs, "hidden_states": x}
                )  # fmt: skip
                if isinstance(given, Tensor):
                    return given
                rest[:] = given[1:]
                if any(isinstance(v, Tensor) and v.requires_grad for v in rest):
                    raise TypeError("a block returns more than hidden states that need gradients")
                found: Tensor = given[0]
                return found

            anchor = torch.empty(0, device=hidden.device, requires_grad=True)
            found = _Again.apply(anchor, hidden, run, self._around(block, hidden.device))
            return (found, *rest) if rest else found

        return forward

    def _around(self, block: nn.Module, device: torch.device) -> Callable[[], Any]:
        """Return what puts everything in place again that a block looks at, as it is now."""
        model, valid, masks = self._model, self._model._valid, standing()
        drops, cuda = block.training, device.type == "cuda"
        state = torch.get_rng_state() if drops else None
        on_card = torch.cuda.get_rng_state(device) if drops and cuda else None
        lower = torch.autocast(
            device.type, torch.get_autocast_dtype(device.type),
            enabled=torch.is_autocast_enabled(device.type),
        )  # fmt: skip

        @contextmanager
        def around() -> Iterator[None]:
            before, model._valid = model._valid, valid
            try:
                with ExitStack() as stack:
                    if state is not None:
                        stack.enter_context(torch.random.fork_rng([device] if cuda else []))
                        torch.set_rng_state(state)
                        if on_card is not None:
                            torch.cuda.set_rng_state(on_card, device)
                    stack.enter_context(masks())
                    stack.enter_context(lower)
                    yield
            finally:
                model._valid = before

        return around


def recompute(
    model: Model, asked: Tokens, device: torch.device, objective: Objective, hooks: Hooks | None
) -> Recomputed:
    """Let the model's blocks be computed again on the way back.

    The gradients of random texts `asked` are compared with those of the model as it was. Raises
    InputError if they differ by more than rounding, or there is no list of blocks.
    """
    paths = {m: n for n, m in model.backbone.named_modules()}
    blocks = find_blocks(model.backbone, [paths[layer] for layer in model.layers.values()])
    if blocks is None:
        raise wrong(KEY, True, "false with this model: its adapted layers are in no list of blocks")
    if hooks is not None:
        hooks.disable_hooks()
    precision, model.precision = model.precision, "fp32"
    batch = asked.batch(range(len(asked.labels)), device)
    named = model.trainable()
    found: list[dict[str, Tensor]] = []
    made: Recomputed | None = None
    why = ""
    try:
        for _ in range(2):
            objective.losses(model, batch).sum().backward()
            found.append(
                {n: torch.zeros(1) if p.grad is None else p.grad[None] for n, p in named.items()}
            )
            for p in named.values():
                p.grad = None
            made = made or Recomputed(model, list(blocks.modules))
        difference = farthest(found[1], found[0])
        why = difference.told if difference.size > TOLERANCE else ""
    except Exception as error:  # whatever a model does that is not made for this
        said = (str(error).strip().splitlines() or [""])[0][:100]
        why = f"{type(error).__name__}: {said}"
    finally:
        model.precision = precision
        if hooks is not None:
            hooks.renew()
    if why or made is None:
        if made is not None:
            made.remove()
        raise wrong(KEY, True, f"false with this model, whose blocks cannot run twice: {why}")
    return made
