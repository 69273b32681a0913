"""One trial of a sweep, as its process sees it."""

import contextlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from fedsvd.terminal import complain, guarded, one_line

LOG = "trial.log"  # what the trial would have printed
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: its summary, or why there is none."""

    summary: Mapping[str, Any] | None = None
    reason: str = ""
    refused: bool = False  # its input was wrong


@dataclass(frozen=True)
class Order:
    """What a trial's process needs: resolved settings, its folder, and the driver's surroundings."""

    config: Mapping[str, Any]
    overrides: Sequence[str]
    folder: Path
    threads: int
    directory: str  # that relative paths in the settings start from
    paths: Sequence[str]  # where modules are looked for


def run_trial(order: Order) -> Outcome:
    """Run one trial from its beginning in its folder, its output in the folder's trial.log.

    PyTorch gets `threads`, so that trials beside each other do not fight for the cores.
    """
    for name, value in (("FLWR_TELEMETRY_ENABLED", "0"), ("TOKENIZERS_PARALLELISM", "false")):
        os.environ.setdefault(name, value)
    sys.path.extend(p for p in order.paths if p not in sys.path)
    if not order.folder.is_dir():
        return Outcome(
            reason=f"{order.folder} is not there on node {os.uname().nodename}: hydra.sweep.dir "
            "must be on a file system that all nodes of the cluster share",
            refused=True,
        )
    if os.path.isdir(order.directory):
        os.chdir(order.directory)
    with (
        (order.folder / LOG).open("w", encoding="utf-8", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
        guarded(),
    ):
        node = ray.get_runtime_context().get_node_id()
        complain(f"process {os.getpid()} on node {node}")
        return _run(order)


def _run(order: Order) -> Outcome:
    import torch
    from omegaconf import OmegaConf

    from fedsvd.errors import InputError
    from fedsvd.execute import execute

    torch.set_num_threads(order.threads)
    try:
        config = OmegaConf.create(dict(order.config))
        return Outcome(execute(config, order.folder, list(order.overrides)))
    except InputError as error:
        complain(f"error: {one_line(str(error))}")
        return Outcome(reason=str(error), refused=True)
    except Exception as error:  # whatever ends one trial leaves the others alone
        traceback.print_exc()
        return Outcome(reason="".join(traceback.format_exception_only(error)).strip())


def set_aside(folder: Path) -> None:
    """Move what an attempt left that did not come to its end into unfinished-N/."""
    left = [p for p in folder.iterdir() if not p.name.startswith("unfinished-")]
    if not left:
        return
    number = 1
    while (folder / f"unfinished-{number}").exists():
        number += 1
    (folder / f"unfinished-{number}").mkdir()
    for path in left:
        path.rename(folder / f"unfinished-{number}" / path.name)
