"""Joining or starting a Ray cluster, and the room for workers in it."""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import ray

from fedsvd.engines.address import check_address, named
from fedsvd.errors import InputError
from fedsvd.settings import EngineSettings
from fedsvd.terminal import one_line
from fedsvd.waiting import told

# What Ray puts behind its folder for its longest socket; a process id has at most 7 digits.
SOCKET = "/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
LONGEST = 103 if sys.platform == "darwin" else 107  # bytes of a socket's path (AF_UNIX)


def connect(address: str | None, key: str = "engine.address") -> bool:
    """Join the cluster at `address` (default: RAY_ADDRESS) or start one; return whether started.

    Within a Ray task or actor the surrounding cluster is used. Raises InputError, with `key` for the
    address, if no cluster answers there within seconds, or none can be started.
    """
    if ray.is_initialized():
        return False
    address, key = named(address, key)
    if address is None:
        _check_sockets()
        with told(lambda: "Ray to start"):
            _init(None, lambda why: f"engine: Ray cannot start on this machine: {why}")
        return True
    check_address(address, key)
    with told(lambda: f"the Ray cluster at {address}"):
        _init(address, lambda why: f"{key}: {address!r} cannot be joined: {why}")
    return False


def check_engine(settings: EngineSettings) -> None:
    """Raise InputError, before any work, if `connect` would; other engines need no cluster."""
    if settings.name != "ray" or ray.is_initialized():
        return
    address, key = named(settings.address)
    if address is None:
        _check_sockets()
    else:
        check_address(address, key)


def _init(address: str | None, refusal: Callable[[str], str]) -> None:
    """Let Ray join or start a cluster, without its advice and with our handler of SIGTERM."""
    on_terminate = signal.getsignal(signal.SIGTERM)  # Ray would put its own in the place of ours
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # on devices of workers without a GPU
            ray.init(
                address=address or "local", log_to_driver=False, logging_level=logging.ERROR,
                configure_logging=False, include_dashboard=False if not address else None,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(refusal(one_line(str(error))[:300])) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)


def _check_sockets() -> None:
    """Raise InputError if Ray's sockets would have longer paths than the system takes."""
    variables = ("RAY_TMPDIR", *(("TMPDIR",) if sys.platform.startswith("linux") else ()))
    for variable in variables:
        folder = os.environ.get(variable)
        if folder is None:
            continue
        room = LONGEST - len(os.fsencode(SOCKET))
        if len(os.fsencode(folder)) > room:
            raise InputError(
                f"{variable}: {folder!r} has {len(os.fsencode(folder))} bytes; it must be at most "
                f"{room} for Ray's sockets (RAY_TMPDIR=/tmp sets another folder for Ray alone)"
            )
        return


def room_for(settings: EngineSettings) -> int:
    """Return how many workers the cluster's nodes hold, at most `engine.workers`."""
    room = 0
    nodes: list[dict[str, Any]] = ray.nodes()
    for node in nodes:
        if node["Alive"]:
            has = node["Resources"]
            fits = [
                int(has.get(kind, 0) / need)
                for kind, need in (("CPU", settings.num_cpus), ("GPU", settings.num_gpus))
                if need > 0
            ]
            room += min(fits) if fits else 1
    return room if settings.workers is None else min(room, settings.workers)
