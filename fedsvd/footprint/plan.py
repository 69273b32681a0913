"""`python -m fedsvd.run ... --plan`: the memory that a run will take, before anything is loaded."""

import os
import resource
import sys
from dataclasses import dataclass, replace
from typing import Any, final

import torch

from fedsvd.errors import InputError
from fedsvd.factors import factors_of
from fedsvd.footprint.outline import Sizes, sizes
from fedsvd.models.language_model import CHUNK_BYTES
from fedsvd.settings import Settings

MIB = 2**20
STATES = 4  # copies of the factors beside the clients': initial, global, averaged, written
LOGITS = 3.5  # of CHUNK_BYTES: logits, their exponentials, the slope, a copy in low precision
SHORT = 4  # texts of a quarter of max_length: more rows, of less attention, in a micro-batch
CONTEXT = 500 * MIB  # of CUDA's, on a card


@final
@dataclass(frozen=True)
class Plan:
    """The parts of a run's memory in bytes, in a process that runs clients, and what there is.

    libraries: measured in this process, which has imported what a run does. loading: what stands when
    the weights are read, beside libraries; it ends before a step begins.
    """

    device: str
    libraries: float
    weights: float
    activations: float
    gradients: float
    passing: float
    state: float
    data: float
    loading: float
    rows: int
    tokens: int
    by: str
    room: float

    @property
    def step(self) -> float:
        """What stands in a step, beside libraries."""
        parts = (self.weights, self.activations, self.gradients, self.passing)
        return sum(parts) + self.state + self.data

    @property
    def most(self) -> float:
        """The peak."""
        return self.libraries + max(self.step, self.loading)


def make_plan(settings: Settings) -> Plan:
    """Return what a run under these settings takes. Reads the model's config.json; InputError."""
    import fedsvd.experiment  # noqa: F401 -- what a run imports is in this process's memory then
    from fedsvd.client.worker import choose_device

    device = choose_device(settings.device)
    training, longest = settings.training, settings.model.max_length
    alone = settings.privacy.unit == "example" and settings.privacy.gradients == "loop"
    trains = factors_of(settings)
    found: list[Sizes] = []
    libraries = float(_resident())
    for tokens in (longest, max(8, longest // SHORT)):
        rows = 1 if alone else max(1, training.microbatch_tokens // tokens)
        found.append(sizes(settings, trains, rows, tokens))
    libraries = max(libraries, float(_resident()))
    largest = max(found, key=lambda s: _most(s, settings))
    room = float(_room())
    if device.type == "cuda":
        libraries, room = CONTEXT, float(torch.cuda.get_device_properties(device).total_memory)
    gradients = _gradients(largest, settings)
    logits = LOGITS * CHUNK_BYTES if largest.vocabulary else 0.0
    passing = max(largest.most - largest.activations - gradients, logits, 0.0)
    adamw = 2 if training.optimizer == "adamw" else 0
    copies = STATES + settings.clients.per_round + adamw
    loading = largest.loaded + (largest.weights if settings.model.stored else 0)
    return Plan(
        str(device), libraries, largest.weights, float(largest.activations), gradients, passing,
        4.0 * largest.adapter * copies, _data(settings), 0.0 if device.type == "cuda" else loading,
        largest.rows, largest.tokens, "one at a time" if alone else "by hooks", room,
    )  # fmt: skip


def told(plan: Plan, settings: Settings) -> list[str]:
    """Return the plan as lines, with what to change if it does not fit."""
    facts = [
        ("libraries", plan.libraries, "Python, PyTorch and what a run imports"),
        ("weights", plan.weights, settings.model.stored or "float32"),
        ("activations", plan.activations,
         f"a micro-batch of {plan.rows} x {plan.tokens} tokens, gradients {plan.by}"),
        ("gradients", plan.gradients, "of each of its examples, float32"),
        ("passing", plan.passing, "within a block, and of the logits' chunk"),
        ("state", plan.state, "factors, of the server and of a round's clients"),
        ("data", plan.data, "texts and tokens"),
    ]  # fmt: skip
    where = "memory" if plan.device == "cpu" else plan.device
    lines = [f"{name:12}{size / MIB:>10,.0f} MiB  {what}" for name, size, what in facts]
    if plan.loading > plan.step:
        lines.append(f"{'loading':12}{plan.loading / MIB:>10,.0f} MiB  while the weights are read")
    lines.append(
        f"{'peak':12}{plan.most / MIB:>10,.0f} MiB  of {plan.room / MIB:,.0f} MiB of {where}"
    )
    if settings.engine.name == "ray":
        lines.append("engine=ray: so much in each worker, and in the process that starts them")
    if plan.most <= plan.room:
        return [*lines, "it fits"]
    found = advice(plan, settings)
    if plan.loading > plan.step:
        found.append("  weights are read in float32 before they are held in fewer bytes")
    return [*lines, "it does not fit; what to change:", *(found or ["  the model, or the machine"])]


def advice(plan: Plan, settings: Settings) -> list[str]:
    """Return overrides that make a run smaller, each with the peak that it would have."""
    training, model = settings.training, settings.model
    fewer = max(model.max_length, training.microbatch_tokens // 4)
    steps: dict[str, dict[str, Any]] = {
        "gradient_checkpointing=true": {"gradient_checkpointing": True},
        f"microbatch_tokens={fewer}": {"microbatch_tokens": fewer},
    }
    models: dict[str, dict[str, Any]] = {
        "attention=sdpa": {"attention": "sdpa"},
        "dtype=bfloat16": {"dtype": "bfloat16"},
        "quantization=nf4": {"quantization": "nf4"},
    }
    changed = {
        f"training.{name}": replace(settings, training=replace(training, **values))
        for name, values in steps.items()
    }
    changed |= {
        f"model.{name}": replace(settings, model=replace(model, **values))
        for name, values in models.items()
    }
    lines = []
    for override, other in changed.items():
        if other == settings:
            continue
        try:
            most = make_plan(other).most
        except InputError:
            continue
        if most < plan.most:
            lines.append(f"  {override:40}{most / MIB:>10,.0f} MiB")
    return lines


def _gradients(found: Sizes, settings: Settings) -> float:
    each = settings.privacy.unit == "example"
    return 4.0 * found.trained * (found.rows if each else 1)


def _most(found: Sizes, settings: Settings) -> float:
    return max(float(found.most), found.activations + _gradients(found, settings))


def _data(settings: Settings) -> float:
    """Return about what texts and tokens take: every row read, at half of its longest."""
    data = settings.data
    rows = data.public_size or 0
    kept = rows if data.limit is None else min(rows, data.limit)
    return rows * 400.0 + kept * settings.model.max_length / 2 * 8


def _resident() -> int:
    """Return the most memory that this process has held so far, in bytes.

    The system's ru_maxrss is read last: on Linux it counts what the process held before exec, which
    is the memory of whoever started it.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most * 1024)


def _room() -> int:
    """Return the memory of this machine, or of the group that this process belongs to."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            return min(whole, int(file.read()))
    except (OSError, ValueError):
        return whole
