"""A run leaves its process as it found it."""

import logging
import os
import random
import sys
import warnings

import numpy as np
import pytest
import torch

from fedsvd.surroundings import as_found


def chdir(folder):
    os.chdir(folder)


CHANGES = {
    "threads": lambda _: torch.set_num_threads(torch.get_num_threads() + 1),
    "default dtype": lambda _: torch.set_default_dtype(torch.float64),
    "default device": lambda _: torch.set_default_device("meta"),
    "gradients": lambda _: torch.set_grad_enabled(False),
    "anomalies": lambda _: torch.autograd.set_detect_anomaly(True),
    "matmul": lambda _: torch.set_float32_matmul_precision("medium"),
    "deterministic": lambda _: torch.use_deterministic_algorithms(True),
    "mkldnn": lambda _: setattr(torch.backends.mkldnn, "enabled", False),
    "python's generator": lambda _: random.seed(3),
    "numpy's generator": lambda _: np.random.seed(3),  # noqa: NPY002
    "torch's generator": lambda _: torch.manual_seed(3),
    "warnings": lambda _: warnings.filterwarnings("ignore", "something of a run"),
    "hooks": lambda _: torch.nn.modules.module.register_module_forward_hook(lambda *_: None),
    "logging": lambda _: logging.getLogger("flwr").setLevel(1),
    "handlers": lambda _: logging.getLogger().addHandler(logging.NullHandler()),
    "propagation": lambda _: setattr(logging.getLogger("flwr"), "propagate", "changed"),
    "logging at all": lambda _: logging.disable(logging.CRITICAL),
    "environment": lambda _: os.environ.update(FEDSVD_A_RUN="1", PATH="/"),
    "folder": chdir,
    "paths": lambda _: sys.path.insert(0, "/a/run"),
}


def seen():
    """Everything that is to stay, read without the code under test."""
    numbers = np.random.get_state()  # noqa: NPY002
    return {
        "threads": torch.get_num_threads(),
        "default dtype": torch.empty(0).dtype,
        "default device": torch.empty(0).device.type,
        "gradients": torch.is_grad_enabled(),
        "anomalies": torch.is_anomaly_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "python's generator": random.getstate(),
        "numpy's generator": (numbers[1].tobytes(), numbers[2]),
        "torch's generator": torch.get_rng_state().tolist() if torch.empty(0).is_cpu else None,
        "warnings": [repr(f) for f in warnings.filters],
        "hooks": len(torch.nn.modules.module._global_forward_hooks),
        "logging": logging.getLogger("flwr").level,
        "handlers": list(logging.getLogger().handlers),
        "propagation": logging.getLogger("flwr").propagate,
        "logging at all": logging.root.manager.disable,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "paths": list(sys.path),
    }


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("fails", [False, True])
def test_it_is_put_back(what, fails, tmp_path):
    before = seen()
    try:
        with as_found():
            CHANGES[what](tmp_path)
            assert seen()[what] != before[what]
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert seen() == before


def test_nothing_costs_later_calls():
    with as_found():
        pass
    assert torch._C._len_torch_function_stack() == 0
