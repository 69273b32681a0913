"""Joining or starting a Ray cluster, and the room for workers in it."""

import logging
import os
import signal
import socket
import threading
import warnings

import ray

from fedsvd.errors import InputError
from fedsvd.settings import EngineSettings


def connect(address: str | None, key: str = "engine.address") -> bool:
    """Join the cluster at `address` (default: RAY_ADDRESS) or start one; return whether started.

    Within a Ray task or actor the surrounding cluster is used. Raises InputError, with `key` for the
    address, if nothing answers.
    """
    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS")
    address = None if address == "local" else address
    on_terminate = signal.getsignal(signal.SIGTERM)  # Ray would put its own in the place of ours
    try:
        _probe(address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # on devices of workers without a GPU
            ray.init(
                address=address or "local", log_to_driver=False, logging_level=logging.ERROR,
                configure_logging=False, include_dashboard=False if not address else None,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{key}: {address!r} cannot be joined: {first}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)
    return not address


def _probe(address: str | None) -> None:
    """Raise OSError if nothing listens at host:port; Ray itself would wait for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def room_for(settings: EngineSettings) -> int:
    """Return how many workers the cluster's nodes hold, at most `engine.workers`."""
    room = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            fits = [
                int(has.get(kind, 0) / need)
                for kind, need in (("CPU", settings.num_cpus), ("GPU", settings.num_gpus))
                if need > 0
            ]
            room += min(fits) if fits else 1
    return room if settings.workers is None else min(room, settings.workers)
