"""What a run is made of, so that it is only ever continued as itself."""

import hashlib
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fedsvd import randomness
from fedsvd.client.worker import Worker
from fedsvd.errors import InputError
from fedsvd.models.backbone import attention_of
from fedsvd.settings import Settings
from fedsvd.settings.flat import dotted
from fedsvd.version import __version__

# Where things are and how clients execute: free to change, as digests are compared and an engine
# never changes a result. `rounds` has rules of its own (`fedsvd.checkpoints.resume`).
FREE = (
    "rounds", "device", "engine.name", "engine.workers", "engine.num_cpus", "engine.num_gpus",
    "engine.address", "engine.threads", "recorder.name", "recorder.answers",
    "recorder.answer_tokens", "recorder.checkpoint_every",
    "recorder.keep", "recorder.project", "recorder.group", "recorder.run_name", "recorder.mode",
    "recorder.store", "recorder.target", "faults.deadline", "data.name", "data.path",
    "data.package", "data.file",
    "data.hub", "model.package", "model.folder", "model.revision", "training.precision",
    "training.cache", "training.gradient_checkpointing", "privacy.gradients",
)  # fmt: skip


def flat(settings: Settings) -> dict[str, Any]:
    """Return the settings that make a run's past, as one level of dotted keys."""
    found = dotted(settings)
    renamed = {k.replace("strategy.options.", "strategy."): v for k, v in found.items()}
    known = {k: v for k, v in renamed.items() if k not in FREE and k != "strategy.options"}
    known = {k: v for k, v in known.items() if not k.startswith("recorder.options")}
    known["strategy._target_"] = known.pop("strategy.target")
    return {k: _listed(v) for k, v in known.items()}


def _listed(value: Any) -> Any:
    """Return tuples as the lists that JSON makes of them."""
    return [_listed(v) for v in value] if isinstance(value, (list, tuple)) else value


def surroundings(worker: Worker) -> dict[str, Any]:
    """Return what the last bits depend on beside the settings, and the digests of all inputs."""
    settings = worker.settings
    if settings.engine.name == "ray":
        from fedsvd.engines.ray import threads_of

        threads = threads_of(settings.engine)
    else:
        threads = torch.get_num_threads()
    attention = attention_of(settings.model)
    # What was chosen is compared, not what was asked for; hooks are what there was before.
    chosen = worker.plan.gradients
    return {
        **({"privacy.gradients": chosen} if chosen == "loop" else {}),
        **({"training.cache": "on"} if worker.kept is not None else {}),
        **({"model.attention": attention} if attention != "eager" else {}),
        "fedsvd": __version__,
        "torch": torch.__version__,
        "randomness": randomness.SCHEME,
        "device": str(worker.device),
        "training.precision": worker.precision,
        "engine.threads": threads,
        "processor": torch.backends.cpu.get_cpu_capability(),
        **digests(worker),
    }


_known: list[tuple[weakref.ref[Worker], dict[str, str]]] = []  # nobody's model is kept by it


def digests(worker: Worker) -> dict[str, str]:
    """Return SHA-256 digests of data, partition and model; made once for a worker."""
    if not _known or _known[0][0]() is not worker:
        _known[:] = [(weakref.ref(worker), _digests(worker))]
    return _known[0][1]


def _digests(worker: Worker) -> dict[str, str]:
    task, model = worker.task, worker.model
    data, parts, weights = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    data.update(repr((task.texts, task.label_names)).encode("utf-8", "surrogatepass"))
    for rows in (task.labels, task.train, task.validation, task.test):
        data.update(np.ascontiguousarray(rows).data)
        data.update(b"|")
    for rows in worker.parts:
        parts.update(np.ascontiguousarray(rows).data)
        parts.update(b"|")
    model.write(worker.initial)  # a worker may have served another run of these settings
    for name, p in sorted([*model.named_parameters(), *model.named_buffers()]):
        weights.update(f"{name}|{tuple(p.shape)}|{p.dtype}|".encode())
        weights.update(p.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for column in worker.tokens.columns.values():
        weights.update(torch.cat(column).numpy().data)
    return {"data": data.hexdigest(), "partition": parts.hexdigest(), "model": weights.hexdigest()}


def refuse_changes(what: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise InputError that names every key whose value is not what it was."""
    changed = [k for k in sorted({*then, *now}) if then.get(k) != now.get(k)]
    if changed:
        told = "; ".join(
            f"{k} was {_short(then.get(k))}, now {_short(now.get(k))}" for k in changed
        )
        raise InputError(
            f"{what}: cannot be resumed, as what is done would have been otherwise: {told}"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:18] + "..." + text[-18:]
