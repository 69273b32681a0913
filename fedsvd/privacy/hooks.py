"""Opacus's per-example hooks on a model, attached and taken off without a trace.

Opacus keeps what a forward pass leaves for the backward pass on modules and parameters. Whatever
ends a pass in between leaves it there, and the next pass would pair it with other examples. Opacus's
own `cleanup` goes by a list that an interruption can leave incomplete; `strip` looks at the model.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, final

from opacus.grad_sample import GradSampleHooks
from torch import nn

OF_PARAMETERS = (
    "grad_sample", "_current_grad_sample", "_norm_sample", "summed_grad", "_forward_counter",
)  # fmt: skip
OF_MODULES = ("activations", "max_batch_len", "ft_compute_sample_grad")


def attach_hooks(model: nn.Module) -> GradSampleHooks:
    """Attach Opacus's per-example gradient hooks to everything in `model` that trains.

    The model is not wrapped: its parameter names, its methods and its memory stay as they are.
    """
    return GradSampleHooks(model, loss_reduction="sum", strict=False)


def strip(model: nn.Module) -> None:
    """Take every hook of Opacus off, and what passes have left on modules and parameters.

    It may be interrupted anywhere and called again.
    """
    for module in model.modules():
        for hooks in (module._forward_hooks, module._backward_hooks):
            for key in [k for k, hook in hooks.items() if _of_opacus(hook)]:
                del hooks[key]
        module.__dict__.pop("autograd_grad_sample_hooks", None)
        if any(hasattr(p, "_forward_counter") for p in module.parameters(recurse=False)):
            for name in OF_MODULES:
                module.__dict__.pop(name, None)
    for parameter in model.parameters():
        parameter.grad = None
        for name in OF_PARAMETERS:
            if hasattr(parameter, name):
                delattr(parameter, name)


def _of_opacus(hook: Callable[..., Any]) -> bool:
    function = hook.func if isinstance(hook, partial) else hook
    return isinstance(getattr(function, "__self__", None), GradSampleHooks)


@final
class Hooks:
    """The hooks of one model, which can be renewed at any time."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.renew()

    def renew(self) -> None:
        """Attach hooks to what trains now, with nothing left of any earlier pass."""
        strip(self._model)
        self._now = attach_hooks(self._model)

    def enable_hooks(self) -> None:
        """Let passes leave per-example gradients."""
        self._now.enable_hooks()

    def disable_hooks(self) -> None:
        """Let passes leave nothing."""
        self._now.disable_hooks()

    def cleanup(self) -> None:
        """Take the hooks off."""
        strip(self._model)
