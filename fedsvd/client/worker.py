"""What a process keeps to serve clients: built once, used for every client and round."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsvd.adapters import lora
from fedsvd.adapters.build import check_inputs, check_stored, looks_at_texts
from fedsvd.adapters.targets import find_layers
from fedsvd.client import dropout, remembered
from fedsvd.client.gradients import settle
from fedsvd.client.kept import Kept, keep
from fedsvd.client.probe import SHORT, some_tokens, unreached
from fedsvd.client.public import PublicTexts
from fedsvd.client.questions import check_room
from fedsvd.client.recompute import recompute
from fedsvd.client.shorten import shorten
from fedsvd.client.texts import only_usable
from fedsvd.client.use import Use
from fedsvd.data.dealing import deal_whole
from fedsvd.data.sources import files_now
from fedsvd.data.splits import subset
from fedsvd.data.task import Holder, Task, load_task
from fedsvd.data.tokens import Tokens
from fedsvd.errors import wrong
from fedsvd.factors import factors_of
from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.pair import kind_of
from fedsvd.models.backbone import load_tokenizer, locate
from fedsvd.models.base import Model
from fedsvd.models.usable import fit_tokenizer
from fedsvd.objectives.base import Objective
from fedsvd.objectives.build import objective_of
from fedsvd.privacy.hooks import Hooks
from fedsvd.privacy.plan import PrivacyPlan, make_plan
from fedsvd.settings import DataSettings, Settings
from fedsvd.settings.clients import AUTO, DEFAULT_BUDGET
from fedsvd.terminal import complain

# Padded tokens of a batch that is evaluated: few fit a processor's caches, many fill a card.
TOKENS = {"cpu": 1024}
TOKENS_ELSEWHERE = 7680


@dataclass
class Worker:
    """Task, tokens, the clients' parts, the privacy plan and one model on its device.

    `parts[k]` are client k's rows of the task. `initial` is the first global state, derived from
    the seed and equal in every process. `hooks` are Opacus's, kept on for the process's life; None
    where there are none: without privacy by example, or with `gradients` "loop". `left_out` are the
    targeted layers that no gradient reaches. `kept` holds what enters the lowest adapted block, of
    every example that was asked for; None where the model is run as a whole every time. `blocks` is a
    phrase about it for the screen.
    """

    settings: Settings
    task: Task
    tokens: Tokens
    parts: list[np.ndarray]
    plan: PrivacyPlan
    device: torch.device
    precision: str
    tokenizer: Any
    model: Model
    hooks: Hooks | None
    origin: str
    left_out: Sequence[str] = ()
    weights: str = ""  # digest of the plain backbone's
    use: Use = field(default_factory=Use)
    kept: Kept | None = None
    blocks: str = ""
    files: Hashable | None = None  # of the data, as they were before they were read

    @property
    def objective(self) -> Objective:
        """What the model is trained for."""
        return objective_of(self.settings.task)

    @property
    def initial(self) -> AdapterState:
        """The global state before the first round."""
        return self.model.initial

    @cached_property
    def subset(self) -> np.ndarray:
        """The rows of validation that are evaluated while a run goes, every time the same."""
        settings, task = self.settings, self.task
        number = settings.recorder.evaluate_examples
        return subset(task.validation, task.texts, task.given, settings.data, number, settings.seed)

    def let_train(self, kinds: Sequence[str]) -> None:
        """Let exactly these kinds of factors train from now on, and the head as before."""
        self.use.kinds = tuple(kinds)
        self.narrow(kinds)

    def narrow(self, kinds: Sequence[str]) -> None:
        """Let exactly these kinds train, until the client's training ends.

        Opacus's hooks look for what trains when they are attached, so they are attached anew, but
        only when something changes: in the rounds of a strategy that alternates.
        """
        named = self.model.trainable()
        wanted = set(kinds) & {kind for kind in ("A", "B") if self.model.initial.select((kind,))}
        if wanted != {kind_of(n) for n in named} - {"extra"}:
            self._set_kinds(kinds)

    def _set_kinds(self, kinds: Sequence[str]) -> None:
        if self.hooks is not None:
            self.hooks.cleanup()
        lora.set_trainable(self.model.layers, kinds)
        if self.hooks is not None:
            self.hooks.renew()

    def mend(self) -> None:
        """Put hooks, modes and what trains in order, not trusting anything about them."""
        dropout.clear()
        for p in self.model.parameters():
            p.grad = None
        assert self.use.kinds is not None
        self._set_kinds(self.use.kinds)
        self.model.set_dropout(False)
        self.use.clean = True

    @property
    def trains(self) -> tuple[str, ...]:
        """Which of A, B train now."""
        kinds = {kind_of(name) for name in self.model.trainable()}
        return tuple(kind for kind in ("A", "B") if kind in kinds)

    def losses(self, rows: Sequence[int], flipped: bool = False) -> Tensor:
        """Return the loss (n,) of each of the given rows, of a wrong label if `flipped`."""
        batch = self.tokens.batch(rows, self.device)
        kept = self.kept if self.kept is not None and self.kept.trains else None
        if flipped:
            batch = self.objective.flipped(batch, self.task.classes)
        return self.objective.losses(self.model, batch, self._entering(self.tokens, rows, kept))

    @torch.inference_mode()
    def outputs(self, rows: Sequence[int]) -> Tensor:
        """Return the objective's outputs (n, k) of `rows`, on the CPU, computed in length order."""
        tokens, each = self.tokens.scored
        texts = [each * int(row) + i for row in rows for i in range(each)]
        out = torch.zeros(len(texts), self.objective.width(self.task.classes) // each)
        place = {text: i for i, text in enumerate(texts)}
        budget = TOKENS.get(self.device.type, TOKENS_ELSEWHERE)
        for group in tokens.microbatches(texts, budget):
            batch = tokens.batch(group, self.device)
            index = torch.tensor([place[r] for r in group])
            entering = self._entering(tokens, group, self.kept)
            found = self.objective.outputs(self.model, batch, entering)
            out[index] = found.float().cpu()
        return out.view(len(rows), self.objective.width(self.task.classes))

    def _entering(self, tokens: Tokens, rows: Sequence[int], kept: Kept | None) -> Tensor | None:
        """Return what enters the lowest adapted block of each row, None if the whole model runs."""
        return None if kept is None else kept.entering(tokens, [int(row) for row in rows])

    def evaluate(self, state: AdapterState, rows: np.ndarray) -> dict[str, float]:
        """Return the loss and the objective's metrics of a state on rows of the task."""
        return self.objective.measure(*self.scored(state, rows))

    def scored(self, state: AdapterState, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return a state's outputs (n, k) on rows of the task, and the labels (n,) of these."""
        self.model.write(state)
        self.model.set_dropout(False)  # also after a client that failed half way
        asked, labels = rows.tolist(), self.tokens.labels[torch.as_tensor(rows)]
        if state.round == 0 and self.weights:  # runs of a study have one start
            return remembered.outputs(self, asked, lambda: self.outputs(asked)), labels
        return self.outputs(asked), labels


_built: dict[str, Worker] = {}


def get_worker(settings: Settings, anew: bool = False) -> Worker:
    """Return this process's worker for the settings, building it on first use.

    With `anew`, as a run begins, one that was built for an earlier run is given up if the files of
    its data have changed: a row that was taken out must not train on.
    """
    key = settings.key()
    if anew and key in _built and _built[key].files != files_now(settings.data):
        _built.clear()
    if key not in _built:
        _built.clear()  # one model a process
        _built[key] = build_worker(settings)
    return _built[key]


def with_budget(worker: Worker, tokens: int) -> Worker:
    """Return the process's worker for a worker's settings with another token budget.

    It is the same one, but where its start follows from the budget: that of an adapter which looks at
    texts. There it is built anew, as in every other process.
    """
    settings = worker.settings.with_budget(tokens)
    if settings == worker.settings:
        return worker
    _built.clear()
    if looks_at_texts(settings):
        return get_worker(settings)
    worker.settings = settings
    _built[settings.key()] = worker
    return worker


def forget() -> None:
    """Give up the process's worker: the next one is built anew, whatever has become of this one.

    What was read, and is looked at before it is used again, stays: texts, tokens, pretrained weights.
    """
    _built.clear()


def read_ahead(settings: Settings) -> None:
    """Read, build and ask beforehand what runs forked from this process find at hand then.

    Texts, tokens and pretrained weights; where all is on the CPU also what is remembered of the model
    at its start. Raises InputError.
    """
    if settings.training.microbatch_tokens == AUTO:
        settings = settings.with_budget(DEFAULT_BUDGET)
    task, _ = deal(settings)
    objective = objective_of(settings.task)
    objective.tokens(settings, task, load_tokenizer(settings.model))
    objective.backbone(settings)
    if choose_device(settings.device).type != "cpu":
        return  # a process that has begun with a GPU cannot be forked
    worker = build_worker(settings)
    worker.evaluate(worker.initial, worker.task.validation)


def build_worker(settings: Settings) -> Worker:
    """Build a worker: data first, then everything that can be refused, then the model.

    The model is put on the device, then gets its factors, then its hooks, in that order, so that
    what trains is what was moved and what is hooked is what trains. Raises InputError.
    """
    if settings.engine.threads is not None:
        torch.set_num_threads(settings.engine.threads)
    objective = objective_of(settings.task)
    objective.check(settings)
    device = choose_device(settings.device)
    precision = choose_precision(settings.training.precision, device)
    trains = factors_of(settings)
    if settings.partition.name != "own":
        check_inputs(settings)
    check_stored(settings)
    files = files_now(settings.data)
    task, parts = deal(settings)
    # How many rows a node holds is known to nobody else, and nothing may depend on it.
    own = settings.partition.name == "own"
    plan = make_plan(settings, [0 if own else len(p) for p in parts])

    tokenizer = load_tokenizer(settings.model)
    backbone, weights = objective.backbone(settings)
    fit_tokenizer(settings.model.name, backbone, tokenizer)
    tokens = objective.tokens(settings, task, tokenizer)
    parts = only_usable(settings, task, tokens, backbone, parts)
    if objective.generated:
        check_room(settings, task, tokenizer, backbone)
    backbone = backbone.to(device)
    head = objective.head(settings, backbone, tokenizer, task, device, precision)

    bare = objective.model(settings, lora.Attached(backbone, {}, AdapterState({})), head, "fp32")
    public = PublicTexts(settings, task, tokens, tokenizer, bare, device)
    left_out = _unreached(settings, bare, tokens, task.classes)
    # A client with data of its own has no public texts, and must not look at its private ones.
    looks = (None, None) if own else (public.inputs, public.gradients)
    attached = lora.attach(
        backbone, settings.adapter, settings.seed, trains, looks[0], unreached=left_out,
        differentiate=looks[1],
    )  # fmt: skip
    model = objective.model(settings, attached, head, precision)
    _check_trainable(model, trains)
    by_hooks = plan.per_example and settings.privacy.gradients != "loop"
    hooks = Hooks(model) if by_hooks else None
    worker = Worker(
        settings, task, tokens, parts, plan, device, precision, tokenizer, model, hooks,
        locate(settings.model).origin, left_out, weights, files=files,
    )  # fmt: skip
    finish(worker)
    return worker


def finish(worker: Worker) -> None:
    """Decide, from what the model does, what is kept of it and how gradients are taken."""
    settings, model = worker.settings, worker.model
    longest = settings.model.max_length
    ask = partial(
        some_tokens, settings.model.name, model.backbone, worker.tokens,
        classes=worker.task.classes, objective=worker.objective,
    )  # fmt: skip
    asked = ask(longest=longest)
    key = remembered.checked(worker, (), worker.task.classes) if worker.weights else None
    shorten(model, asked, worker.device, key)
    if settings.training.gradient_checkpointing:
        # The comparison keeps whole blocks, which long texts may find no room for.
        few = ask(longest=min(SHORT, longest))
        recompute(model, few, worker.device, worker.objective, worker.hooks)
    # Hidden states of a node's private texts are written nowhere.
    on_disk = settings.partition.name != "own"
    worker.kept, worker.blocks = keep(
        model, asked, worker.device, worker.weights, settings.training.cache_bytes,
        settings.model.dropout, on_disk,
    )  # fmt: skip
    if worker.plan.per_example:
        settle(worker)


def deal(settings: Settings) -> tuple[Task, list[np.ndarray]]:
    """Return the task and each client's rows of it.

    Where clients hold their own data, this process has that of one client, all of it to train on,
    or the server's, all of it to evaluate on; the others' parts are empty.
    """
    given, number = settings.partition, settings.clients.number
    private = settings.privacy.unit != "none"
    if given.name != "own":
        task, parts, _ = deal_whole(settings, _columns(settings))
        _tell(task.notes)
        return task, parts
    holder: Holder = "server" if given.holder is None else "client"
    task = load_task(_columns(settings), settings.seed, holder, private)
    _tell(task.notes)
    parts = [np.empty(0, dtype=np.int64)] * number
    if given.holder is not None:
        if task.strangers:
            _tell([f"{task.source}: {task.strangers} rows have labels that are not among data.labels "
                   "and are left out"])  # fmt: skip
        # Under privacy a refusal would tell the server of the number of examples.
        if len(task.train) < given.min_examples and not private:
            raise wrong("partition.min_examples", given.min_examples, f"at most {len(task.train)}")
        parts[given.holder] = task.train
    return task, parts


def _columns(settings: Settings) -> DataSettings:
    """Return the settings of the data with the columns that the objective reads."""
    return objective_of(settings.task).columns(settings.data)


def _tell(notes: Sequence[str]) -> None:
    """Print what is said here alone, to whoever holds the files."""
    for note in notes:
        complain(f"warning: {note}")


def choose_device(name: str) -> torch.device:
    """Return the device for "auto", "cpu", "cuda" or "cuda:N"; InputError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise wrong("device", name, "'cpu' or 'auto' here: this PyTorch sees no CUDA device")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> str:
    """Return "bf16" or "fp32"; "auto" takes bf16 where the hardware multiplies it natively."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def _unreached(settings: Settings, bare: Model, tokens: Tokens, classes: int) -> list[str]:
    """Return which targeted layers get no gradient; none are targeted with adapter=none."""
    none = settings.adapter.name == "none"
    names = [] if none else find_layers(bare.backbone, settings.adapter)
    name = settings.model.name
    longest, objective = min(SHORT, settings.model.max_length), objective_of(settings.task)
    asked = some_tokens(name, bare.backbone, tokens, longest, classes, objective)
    return unreached(bare, names, asked, settings.model.name)


def _check_trainable(model: Model, trains: Sequence[str]) -> None:
    """Raise RuntimeError unless exactly what should train requires gradients."""
    named = {id(p): name for name, p in model.trainable().items()}
    extra = set(model.initial.extra)
    expected = set(model.initial.select(trains)) | extra
    found = {named.get(id(p), n) for n, p in model.named_parameters() if p.requires_grad}
    if found != expected:
        raise RuntimeError(f"what trains is not what should: {sorted(found ^ expected)[:4]}")
