"""What a run may change in its process beside its own things, and what is put back after it."""

import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as modules


@contextmanager
def as_found() -> Iterator[None]:
    """Put back at the end what a later run in this process would find changed.

    Threads, default dtype and device, modes and switches of PyTorch; global generators of Python,
    NumPy and PyTorch; hooks on all modules; warnings' filters; loggers' levels and handlers; the
    environment, the working directory and where modules are looked for. So every run begins as the
    first one did.
    """
    with ExitStack() as after:
        after.enter_context(warnings.catch_warnings())
        for put_back in _switches():
            after.callback(put_back)
        after.callback(_of_generators())
        after.callback(_of_hooks())
        after.callback(_of_loggers())
        after.callback(_of_system())
        yield


def _switches() -> Iterator[Callable[[], object]]:
    """Yield what sets each of PyTorch's switches to what it is now."""
    backends: Any = torch.backends
    pairs: list[tuple[Callable[[], Any], Callable[[Any], object]]] = [
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_default_device, _set_device),
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    ]
    for owner, name in (
        (backends.cudnn, "deterministic"), (backends.cudnn, "benchmark"),
        (backends.mkldnn, "enabled"),
    ):  # fmt: skip
        pairs.append((partial(getattr, owner, name), partial(setattr, owner, name)))
    for read, write in pairs:
        yield partial(_set, read, write, read())


def _set_device(device: torch.device) -> None:
    plain = device == torch.device("cpu")  # to ask for it costs every later call
    torch.set_default_device(None if plain else device)


def _set(read: Callable[[], Any], write: Callable[[Any], object], value: Any) -> None:
    if read() != value:
        write(value)


def _of_generators() -> Callable[[], object]:
    own: Any = np.random.get_state()  # noqa: NPY002 -- kept, not drawn from
    state, drawn = random.getstate(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def put_back() -> None:
        random.setstate(state)
        np.random.set_state(own)  # noqa: NPY002
        torch.set_rng_state(drawn)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)

    return put_back


def _of_hooks() -> Callable[[], object]:
    """Return what leaves the hooks on all modules at those that are there now."""
    held = {
        name: dict(value)
        for name, value in vars(modules).items()
        if name.startswith("_global_") and isinstance(value, dict)
    }

    def put_back() -> None:
        for name, hooks in held.items():
            now = getattr(modules, name)
            now.clear()
            now.update(hooks)

    return put_back


def _of_loggers() -> Callable[[], object]:
    root, disabled = logging.getLogger(), logging.root.manager.disable
    known = logging.root.manager.loggerDict
    every = [root, *(x for x in known.values() if isinstance(x, logging.Logger))]
    held = [(x, x.level, list(x.handlers), x.propagate, x.disabled) for x in every]

    def put_back() -> None:
        if logging.root.manager.disable != disabled:
            logging.disable(disabled)
        for logger, level, handlers, propagate, off in held:
            if logger.level != level:  # setLevel empties the caches of all loggers
                logger.setLevel(level)
            logger.propagate, logger.disabled = propagate, off
            for handler in [h for h in logger.handlers if h not in handlers]:
                logger.removeHandler(handler)
                handler.close()
            for handler in [h for h in handlers if h not in logger.handlers]:
                logger.addHandler(handler)

    return put_back


def _of_system() -> Callable[[], object]:
    environment, paths = dict(os.environ), list(sys.path)
    try:
        folder: str | None = os.getcwd()
    except OSError:  # it is gone
        folder = None

    def put_back() -> None:
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        for name, value in environment.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        sys.path[:] = paths
        if folder is not None and os.path.isdir(folder):
            os.chdir(folder)

    return put_back
