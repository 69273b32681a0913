"""What a process keeps to serve clients: built once, used for every client and round."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsvd.adapters import lora
from fedsvd.adapters.build import check_inputs
from fedsvd.adapters.targets import find_layers
from fedsvd.client import dropout
from fedsvd.client.attack import flip
from fedsvd.client.gradients import settle
from fedsvd.client.kept import Kept, keep
from fedsvd.client.probe import SHORT, some_tokens, unreached
from fedsvd.client.public import PublicTexts, label_tokens
from fedsvd.client.shorten import shorten
from fedsvd.client.texts import only_usable
from fedsvd.client.use import Use
from fedsvd.data.natural import natural
from fedsvd.data.partition import partition
from fedsvd.data.task import Holder, Task, load_task
from fedsvd.data.tokens import Batch, Tokens, tokenise
from fedsvd.errors import InputError, wrong
from fedsvd.factors import factors_of
from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.pair import kind_of
from fedsvd.models.backbone import load_backbone, load_tokenizer, locate
from fedsvd.models.classifier import Classifier
from fedsvd.models.digest import weights_digest
from fedsvd.models.fixed_heads import fixed_head
from fedsvd.models.heads import random_head, text_head, two_layer_head, zero_head
from fedsvd.models.usable import fit_tokenizer
from fedsvd.privacy.hooks import Hooks
from fedsvd.privacy.plan import PrivacyPlan, make_plan
from fedsvd.settings import Settings
from fedsvd.settings.model import FIXED_HEADS
from fedsvd.terminal import complain
from fedsvd.threads import one_thread


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
    model: Classifier
    hooks: Hooks | None
    origin: str
    left_out: Sequence[str] = ()
    weights: str = ""  # digest of the plain backbone's
    use: Use = field(default_factory=Use)
    kept: Kept | None = None
    blocks: str = ""

    @property
    def initial(self) -> AdapterState:
        """The global state before the first round."""
        return self.model.initial

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
        """Return the cross-entropy (n,) of each of the given rows, of a wrong label if `flipped`."""
        batch = self.tokens.batch(rows, self.device)
        kept = self.kept if self.kept is not None and self.kept.trains else None
        logits = self._logits(batch, rows, kept)
        labels = flip(batch.labels, self.task.classes) if flipped else batch.labels
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    @torch.inference_mode()
    def logits(self, rows: Sequence[int]) -> Tensor:
        """Return logits (n, K) on the CPU in the order of `rows`, computed in length order."""
        out = torch.zeros(len(rows), self.task.classes)
        place = {int(row): i for i, row in enumerate(rows)}
        budget = 10 * self.settings.training.microbatch_tokens
        for group in self.tokens.microbatches([int(r) for r in rows], budget):
            batch = self.tokens.batch(group, self.device)
            index = torch.tensor([place[r] for r in group])
            out[index] = self._logits(batch, group, self.kept).float().cpu()
        return out

    def _logits(self, batch: Batch, rows: Sequence[int], kept: Kept | None) -> Tensor:
        if kept is None:
            return self.model(batch.inputs)
        entering = kept.entering(self.tokens, [int(row) for row in rows])
        return self.model(batch.inputs, entering)

    def evaluate(self, state: AdapterState, rows: np.ndarray) -> dict[str, float]:
        """Return accuracy in [0, 1] and mean cross-entropy of a state on rows of the task."""
        self.model.write(state)
        self.model.set_dropout(False)  # also after a client that failed half way
        logits = self.logits(rows.tolist())
        labels = self.tokens.labels[torch.as_tensor(rows)]
        loss = torch.nn.functional.cross_entropy(logits, labels)
        accuracy = (logits.argmax(dim=1) == labels).double().mean()
        return {"accuracy": float(accuracy), "loss": float(loss)}


_built: dict[str, Worker] = {}


def get_worker(settings: Settings) -> Worker:
    """Return this process's worker for the settings, building it on first use."""
    key = settings.key()
    if key not in _built:
        _built.clear()  # one model a process
        _built[key] = build_worker(settings)
    return _built[key]


def read_ahead(settings: Settings) -> None:
    """Read and tokenise a run's data, so that this process and all forked from it have them at hand.

    Raises InputError.
    """
    task, _ = deal(settings)
    tokenise(load_tokenizer(settings.model), task.texts, task.labels, settings.model.max_length)


def build_worker(settings: Settings) -> Worker:
    """Build a worker: data first, then everything that can be refused, then the model.

    The model is put on the device, then gets its factors, then its hooks, in that order, so that
    what trains is what was moved and what is hooked is what trains. Raises InputError.
    """
    if settings.engine.threads is not None:
        torch.set_num_threads(settings.engine.threads)
    device = choose_device(settings.device)
    precision = choose_precision(settings.training.precision, device)
    trains = factors_of(settings)
    if settings.partition.name != "own":
        check_inputs(settings)
    task, parts = deal(settings)
    # How many rows a node holds is known to nobody else, and nothing may depend on it.
    own = settings.partition.name == "own"
    plan = make_plan(settings, [0 if own else len(p) for p in parts])

    tokenizer = load_tokenizer(settings.model)
    backbone = load_backbone(settings.model)
    fit_tokenizer(settings.model.name, backbone, tokenizer)
    tokens = tokenise(tokenizer, task.texts, task.labels, settings.model.max_length)
    parts = only_usable(settings, task, tokens, backbone, parts)
    weights, backbone = weights_digest(backbone), backbone.to(device)
    head = _make_head(settings, backbone, tokenizer, task, device, precision)

    bare = _classifier(settings, lora.Attached(backbone, {}, AdapterState({})), head, "fp32")
    public = PublicTexts(settings, task, tokens, tokenizer, bare, device)
    left_out = _unreached(settings, bare, tokens, task.classes)
    # A client with data of its own has no public texts, and must not look at its private ones.
    looks = (None, None) if own else (public.inputs, public.gradients)
    attached = lora.attach(
        backbone, settings.adapter, settings.seed, trains, looks[0], unreached=left_out,
        differentiate=looks[1],
    )  # fmt: skip
    model = _classifier(settings, attached, head, precision)
    _check_trainable(model, trains)
    by_hooks = plan.per_example and settings.privacy.gradients != "loop"
    hooks = Hooks(model) if by_hooks else None
    worker = Worker(
        settings, task, tokens, parts, plan, device, precision, tokenizer, model, hooks,
        locate(settings.model).origin, left_out, weights,
    )  # fmt: skip
    finish(worker)
    return worker


def finish(worker: Worker) -> None:
    """Decide, from what the model does, what is kept of it and how gradients are taken."""
    settings, model = worker.settings, worker.model
    longest = settings.model.max_length
    asked = some_tokens(
        settings.model.name, model.backbone, worker.tokens, longest, worker.task.classes
    )
    shorten(model, asked, worker.device)
    worker.kept, worker.blocks = keep(
        model, asked, worker.device, worker.weights, settings.training.cache_bytes,
        settings.model.dropout,
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
        data = replace(settings.data, client=_column(settings))
        task = load_task(data, settings.seed, private=private)
        _tell(task.notes)
        if data.client is not None:
            owners = [task.owners[i] for i in task.train]
            dealt, _ = natural(owners, number, given, data.client, data.clients)
            return task, [task.train[positions] for positions in dealt]
        texts, labels = [task.texts[i] for i in task.train], task.labels[task.train]
        dealt = partition(texts, labels, number, given, settings.seed, task.classes)
        return task, [task.train[positions] for positions in dealt]
    holder: Holder = "server" if given.holder is None else "client"
    task = load_task(settings.data, settings.seed, holder, private)
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


def _column(settings: Settings) -> str | None:
    """Return the column that says whose each row is, None unless that is how rows are dealt."""
    if settings.partition.name != "natural":
        return None
    column = settings.partition.column or settings.data.client
    if column is None:
        raise InputError(
            "partition.column: missing; partition=natural needs the column that says whose a row is"
        )
    return column


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


def _make_head(
    settings: Settings, backbone: torch.nn.Module, tokenizer: Any, task: Task,
    device: torch.device, precision: str,
) -> torch.nn.Module:  # fmt: skip
    model = settings.model
    features, bias = int(backbone.config.hidden_size), model.head_bias  # type: ignore[union-attr,arg-type]
    if model.head in FIXED_HEADS:
        return fixed_head(
            model.head, features, task.classes, settings.seed, device,
            model.head_cosine, model.head_dim,
        )  # fmt: skip
    if model.head_form == "two_layer":
        return two_layer_head(
            features, task.classes, bias, settings.seed, device,
            dropout=model.dropout, zeros=model.head_start == "zeros",
        )  # fmt: skip
    if model.head_start == "zeros":
        return zero_head(features, task.classes, bias, device)
    if model.head_start == "random":
        return random_head(features, task.classes, bias, settings.seed, device)
    tokens = label_tokens(settings, task, tokenizer)
    bare = _classifier(
        settings, lora.Attached(backbone, {}, AdapterState({})),
        zero_head(features, task.classes, False, device), precision,
    )  # fmt: skip
    prototypes = []
    with torch.inference_mode(), one_thread():  # a frozen head never travels
        for label in range(task.classes):
            batch = tokens.batch((tokens.labels == label).nonzero().flatten().tolist(), device)
            prototypes.append(bare.features(batch.inputs).mean(dim=0))
    return text_head(torch.stack(prototypes).clone(), bias)


def _unreached(settings: Settings, bare: Classifier, tokens: Tokens, classes: int) -> list[str]:
    """Return which targeted layers get no gradient; none are targeted with adapter=none."""
    none = settings.adapter.name == "none"
    names = [] if none else find_layers(bare.backbone, settings.adapter)
    name = settings.model.name
    asked = some_tokens(name, bare.backbone, tokens, min(SHORT, settings.model.max_length), classes)
    return unreached(bare, names, asked, settings.model.name)


def _classifier(
    settings: Settings, attached: lora.Attached, head: torch.nn.Module, precision: str
) -> Classifier:
    model = settings.model
    return Classifier(
        attached,
        head,
        pooling=model.pooling,
        normalize=model.unit_features,
        scale=model.logit_scale,
        precision=precision,
        head_trains=model.head_trains,
    )


def _check_trainable(model: Classifier, trains: Sequence[str]) -> None:
    """Raise RuntimeError unless exactly what should train requires gradients."""
    named = {id(p): name for name, p in model.trainable().items()}
    extra = set(model.initial.extra)
    expected = set(model.initial.select(trains)) | extra
    found = {named.get(id(p), n) for n, p in model.named_parameters() if p.requires_grad}
    if found != expected:
        raise RuntimeError(f"what trains is not what should: {sorted(found ^ expected)[:4]}")
