"""`python -m fedsvd.run ... --plan`: the memory that a run will take, before anything is loaded."""

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, final

import torch

from fedsvd.adapters.build import check_inputs, check_stored
from fedsvd.adapters.stored import check_quantised
from fedsvd.client.worker import TOKENS, TOKENS_ELSEWHERE, choose_device
from fedsvd.composing import config_folder
from fedsvd.data.sources import package_file
from fedsvd.errors import InputError
from fedsvd.factors import factors_of
from fedsvd.footprint.outline import Moment, Sizes, precision_of, sizes
from fedsvd.machine import resident
from fedsvd.machine import room as machine_room
from fedsvd.objectives.build import objective_of
from fedsvd.rounds.start import check_start
from fedsvd.settings import DataSettings, Settings
from fedsvd.settings.clients import AUTO, DEFAULT_BUDGET
from fedsvd.strategies.build import build_strategy
from fedsvd.strategies.pairs import check_pair
from fedsvd.strategies.use import check_use

MIB = 2**20
STATES = 4  # copies of the factors beside the clients': initial, global, averaged, written
SHORT = 4  # texts of a quarter of max_length: more rows, of less attention, in a micro-batch
# What a run imports before its first step, and at its end, so that this process holds it too.
EARLY = ("fedsvd.execute", "fedsvd.experiment", "fedsvd.recorders.build", "peft")
LATE = ("matplotlib.figure", "pandas", "sklearn.metrics")
# What glibc holds beside tensors, as a share of what stands at most: 982 MiB of tensors in a step of
# SmolLM2 took 1,346 MiB after an evaluation, and 1,176 MiB where it was told to give all back before.
LEFT = 0.37
KERNEL = 0.68 * MIB  # of oneDNN for products in bfloat16 of one shape on the CPU; it keeps KERNELS
KERNELS = 1024
OBJECTS = 1000  # bytes of what holds a row's texts and tokens in Python
CHECKED = 2  # of the random texts of the check before round 0 stand in memory with the longest
CONTEXT = 500 * MIB  # of CUDA's, on a card
ROW = 400  # bytes of a text, where no file says it
CHARACTERS = 4  # of a token, about


@final
@dataclass(frozen=True)
class Plan:
    """The parts of a run's memory in bytes, in a process that runs clients, and what there is.

    libraries: measured in this process, which has imported what a run does. loading: what stands when
    the weights are read, beside libraries; it ends before a step begins. `moment` is that at which
    most is needed. left: what others leave in the C library's allocator. kernels: compiled for
    products of so many shapes as a run has. late: libraries that are imported when the last step is
    done.
    """

    device: str
    libraries: float
    weights: float
    activations: float
    gradients: float
    passing: float
    left: float
    kernels: float
    state: float
    data: float
    loading: float
    late: float
    moment: Moment
    by: str
    room: float

    @property
    def step(self) -> float:
        """What stands in a step, beside libraries."""
        parts = (self.weights, self.activations, self.gradients, self.passing)
        return sum(parts) + self.left + self.kernels + self.state + self.data

    @property
    def most(self) -> float:
        """The peak."""
        end = self.late + self.weights + self.kernels + self.state + self.data
        return self.libraries + max(self.step, self.loading, end)


def check(settings: Settings) -> None:
    """Raise InputError for what a run would refuse before it reads data or weights."""
    objective_of(settings.task).check(settings)
    strategy = build_strategy(settings.strategy)
    check_use(settings, strategy)
    check_pair(settings, strategy, config_folder())
    check_start(settings, strategy)
    if settings.partition.name != "own":
        check_inputs(settings)
    check_stored(settings)
    check_quantised(settings.model.quantization)


def make_plan(settings: Settings) -> Plan:
    """Return what a run under these settings takes, with the default for `microbatch_tokens=auto`.

    Reads the model's config.json; InputError.
    """
    settings = planned(settings)
    for name in EARLY:
        import_module(name)
    check(settings)
    device = choose_device(settings.device)
    on_card, training = device.type == "cuda", settings.training
    alone = settings.privacy.unit == "example" and settings.privacy.gradients == "loop"
    trains = factors_of(settings)
    libraries = float(resident())
    found = {
        moment: sizes(settings, trains, moment) for moment in moments_of(settings, device, alone)
    }
    libraries = max(libraries, float(resident()))
    late = _late()
    moment = max(found, key=lambda m: beside(found[m], m, settings))
    others = [beside(s, m, settings) for m, s in found.items() if m.what != moment.what]
    largest = found[moment]
    room = float(machine_room())
    if on_card:
        libraries, room = CONTEXT, float(torch.cuda.get_device_properties(device).total_memory)
    gradients = _gradients(largest, moment, settings)
    passing = max(largest.most - largest.activations - gradients, 0.0)
    adamw = 2 if training.optimizer == "adamw" else 0
    copies = STATES + settings.clients.per_round + adamw
    left = min(max(others), LEFT * largest.most)
    loading = largest.loaded + (largest.weights if settings.model.stored else 0)
    return Plan(
        str(device), libraries, largest.weights, float(largest.activations), gradients, passing,
        0.0 if on_card else left, 0.0 if on_card else _kernels(settings, largest.shapes),
        4.0 * largest.adapter * copies, _data(settings, largest.kept), 0.0 if on_card else loading,
        0.0 if on_card else late, moment, "one at a time" if alone else "by hooks", room,
    )  # fmt: skip


def planned(settings: Settings) -> Settings:
    """Return the settings with the default in place of `training.microbatch_tokens=auto`."""
    auto = settings.training.microbatch_tokens == AUTO
    return settings.with_budget(DEFAULT_BUDGET) if auto else settings


def _late() -> float:
    """Return what is imported at a run's end, in bytes: found once in a process."""
    if not _measured:
        before = resident()
        for name in LATE:
            import_module(name)
        _measured.append(float(resident() - before))
    return _measured[0]


_measured: list[float] = []


def moments_of(settings: Settings, device: torch.device, alone: bool) -> list[Moment]:
    """Return when memory can be largest: full micro-batches, the check of gradients, evaluation."""
    longest, budget = settings.model.max_length, settings.training.budget
    precision = precision_of(settings)
    lengths = dict.fromkeys((longest, max(8, longest // SHORT)))
    found = [
        Moment("a micro-batch", 1 if alone else max(1, budget // tokens), tokens, precision)
        for tokens in lengths
    ]
    if settings.privacy.unit == "example":
        rows = 1 if alone else CHECKED
        found.append(Moment("the check of gradients", rows, longest, "fp32"))
    budget = TOKENS.get(device.type, TOKENS_ELSEWHERE)
    rows = max(1, budget // longest)
    return [*found, Moment("an evaluation", rows, longest, precision, trains=False)]


def told(plan: Plan, settings: Settings) -> list[str]:
    """Return the plan as lines, with what to change if it does not fit."""
    auto, settings = settings, planned(settings)
    at = plan.moment
    gradients = f", gradients {plan.by}" if at.trains else ""
    facts = [
        ("libraries", plan.libraries, "Python, PyTorch and what a run imports"),
        ("weights", plan.weights, settings.model.stored or "float32"),
        ("activations", plan.activations,
         f"{at.what} of {at.rows} x {at.tokens} tokens{gradients}"),
        ("gradients", plan.gradients, "of each of its examples, float32"),
        ("passing", plan.passing, "within a block, and of the logits' chunk"),
        ("left", plan.left, "in the allocator by other moments of a run"),
        ("kernels", plan.kernels, "compiled for products in bfloat16, a shape each"),
        ("state", plan.state, "factors, of the server and of a round's clients"),
        ("data", plan.data, "texts and tokens"),
    ]  # fmt: skip
    facts = [fact for fact in facts if fact[0] not in ("left", "kernels") or fact[1]]
    where = "memory" if plan.device == "cpu" else plan.device
    lines = [f"{name:12}{size / MIB:>10,.0f} MiB  {what}" for name, size, what in facts]
    if plan.loading > plan.step:
        lines.append(f"{'loading':12}{plan.loading / MIB:>10,.0f} MiB  while the weights are read")
    lines.append(
        f"{'peak':12}{plan.most / MIB:>10,.0f} MiB  of {plan.room / MIB:,.0f} MiB of {where}"
    )
    if auto != settings:
        lines.append(
            f"training.microbatch_tokens=auto: planned with {DEFAULT_BUDGET}; more is chosen only "
            "where the memory that is free holds it twice"
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
    fewer = max(model.max_length, training.budget // 4)
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


def _gradients(found: Sizes, moment: Moment, settings: Settings) -> float:
    each = settings.privacy.unit == "example"
    return 4.0 * found.trained * (moment.rows if each else 1) if moment.trains else 0.0


def beside(found: Sizes, moment: Moment, settings: Settings) -> float:
    """Return what a moment takes beside weights."""
    return max(float(found.most), found.activations + _gradients(found, moment, settings))


def _kernels(settings: Settings, shapes: int) -> float:
    """Return what oneDNN keeps for products in bfloat16, which it compiles for every shape anew.

    `shapes` are those of the frozen matrices. A number of tokens is one shape more for each on the
    way forward, and one on the way back; of texts of half of the longest. Products in float32 keep
    nothing.
    """
    if precision_of(settings) != "bf16":
        return 0.0
    training, data, clients = settings.training, settings.data, settings.clients
    length, least = settings.model.max_length / 2, training.budget
    rows = (data.public_size or 0) / 10
    looked = min(rows, data.held_out or rows) * length / TOKENS["cpu"]
    in_step = max(1.0, training.batch_size * length / least)
    steps = settings.rounds * clients.per_round * training.local_steps
    trained = min(steps * in_step, float(least))
    return KERNEL * min(KERNELS, shapes * (2 * trained + 2 * looked))


def _data(settings: Settings, kept: int) -> float:
    """Return about what texts and tokens take, and what is kept of them below the adapted blocks.

    All rows are read and tokenised: texts as long as their files, tokens of half of the longest, or
    of four characters, in 9 bytes each. `kept` numbers of a token are kept of the rows that are used,
    in the backbone's precision, up to `training.cache`.
    """
    data, most = settings.data, settings.training.cache_bytes
    rows, size = data.public_size or 0, _texts(data)
    length = settings.model.max_length / 2
    tokens = min(rows * length, size / CHARACTERS) if size else rows * length
    held = min(rows, data.limit or rows) + 2 * (data.held_out or 0)
    each = 2 if precision_of(settings) == "bf16" else 4
    states = 0.0 if most is None else min(float(most), held * length * kept * each)
    return max(float(size), float(rows * ROW)) + OBJECTS * rows + 9 * tokens + states


def _texts(data: DataSettings) -> int:
    """Return the bytes of the local files that a task is read from, 0 if there are none."""
    place = None if data.path is None else Path(data.path).expanduser()
    if place is None and data.package is not None and data.file is not None:
        place = package_file(data.package, data.file)
    if place is None or not place.exists():
        return 0
    files = [place] if place.is_file() else [p for p in place.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)
