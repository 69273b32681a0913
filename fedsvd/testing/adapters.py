"""A conformance kit for adapters: `check_adapter(MyInitialiser, option=value)` in one line.

It measures what every adapter must do and what each declares of itself (`Adapter.tensors`,
`.absorbs`, `.preserves`, `.export`), on a small random BERT with square, tall and wide layers. One
that fails raises AssertionError with one sentence.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsvd.adapters.adapted import Adapted, merged_weight, set_weight, weight_of
from fedsvd.adapters.base import Adapter
from fedsvd.checkpoints.checkpoint import read_checkpoint, write_checkpoint
from fedsvd.errors import InputError
from fedsvd.lowrank import AdapterState, difference
from fedsvd.privacy.dpsgd import attach_hooks
from fedsvd.records import from_record, to_record
from fedsvd.testing.claims import measured
from fedsvd.testing.small import ODD, far, moved, small_batch, small_bert, small_classifier
from fedsvd.testing.steps import check_first_step, check_pull

START = 1e-5  # relative distance from the pretrained model's features, float32
EXACT = 1e-9  # relative, on float64 models


def check_adapter(cls: type[Adapter], **options: Any) -> None:
    """Raise AssertionError, with one sentence that names what is wrong, unless `cls` is sound.

    `options` go to its constructor. It checks that

    - what trains is what it declares, of the right shapes;
    - the model's function at the start, and whether factors hold part of the weight, are as declared;
    - a step changes nothing that is frozen;
    - per-example gradients under Opacus's hooks are those of examples that are alone in their batch;
    - a regulariser is a finite scalar that does not change with the data that went through the model;
    - a `decoupled` regulariser moves the weights by the same amount for every learning rate;
    - the first step is the one that a declared `spectrum` gives;
    - the merged weight, and the factors that are exported, compute the same;
    - the state goes through records and checkpoints into another process's model;
    - the same stream gives the same bits, with any other layers, and the global random state stays.
    """
    name = cls.__name__
    checks = (_form, _start, check_first_step, _streams, _frozen, _gradients, _penalty, check_pull,
              _merge, _travels)  # fmt: skip
    for check in checks:
        try:
            check(name, cls(**options))
        except AssertionError:
            raise
        except InputError as error:
            raise AssertionError(f"{name} is refused: {error}") from error
        except Exception as error:
            said = (str(error).splitlines() or [""])[0]
            raise AssertionError(f"{name} raises {type(error).__name__}: {said}") from error


def _form(name: str, adapter: Adapter) -> None:
    model = small_classifier(adapter)
    kinds, trainable = set(adapter.tensors), model.trainable()
    found = {n.rsplit(".", 1)[-1] for n in trainable}
    assert found, f"{name} trains nothing."
    assert found <= kinds, (
        f"{name} trains {', '.join(sorted(found - kinds))}, which its `tensors` do not name."
    )
    free = {n for n, p in model.named_parameters() if p.requires_grad}
    known = {id(p) for p in trainable.values()}
    hidden = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in known]
    assert free, f"{name} trains nothing."
    assert not hidden, f"{name} leaves {hidden[0]} trainable, which is no part of the state."
    state = model.initial.tensors()
    assert set(trainable) <= set(state), f"{name} trains what the first state does not hold."
    idle = sorted(set(state) - set(trainable))
    assert not idle, f"{name} lets {idle[0]} travel, which does not train."
    assert len(known) == len(trainable), f"{name} gives one parameter two names in the state."
    for key, p in trainable.items():
        assert state[key].shape == p.shape, f"{name} has {key} in another shape in the state."
        assert bool(p.isfinite().all()), f"{name} starts {key} with values that are not finite."


def _start(name: str, adapter: Adapter) -> None:
    model, (inputs, _) = small_classifier(adapter), small_batch()
    with torch.no_grad():
        ours = model.backbone(**inputs).last_hidden_state
        plain = small_bert()(**inputs).last_hidden_state
    same = far(ours, plain) < START
    measured(name, "preserves", adapter.preserves, same,
              "computes at the start what the pretrained model does")  # fmt: skip
    factors = model.initial.factors.values()
    filled = any(bool(pair.B.any()) and bool(pair.A.any()) for pair in factors)
    if factors:
        measured(name, "absorbs", adapter.absorbs, filled, "starts with B A other than 0")


def _streams(name: str, adapter: Adapter) -> None:
    randomness = torch.random.get_rng_state()
    first = small_classifier(adapter).initial
    untouched = torch.equal(torch.random.get_rng_state(), randomness)
    assert untouched, f"{name} draws from the global random generator."
    again = small_classifier(adapter).initial
    assert first.digest() == again.digest(), f"{name} gives other bits for the same stream."
    alone = small_classifier(adapter, targets=(ODD,)).initial.tensors()
    whole = first.tensors()
    for key, value in alone.items():
        assert torch.equal(value, whole[key]), f"{name} starts {key} otherwise beside other layers."


def _frozen(name: str, adapter: Adapter) -> None:
    model, (inputs, labels) = moved(small_classifier(adapter)), small_batch()
    trainable = {id(p) for p in model.trainable().values()}
    fixed = {n: p for n, p in model.named_parameters() if id(p) not in trainable}
    fixed.update(model.named_buffers())  # type: ignore[arg-type]
    before = {n: t.detach().clone() for n, t in fixed.items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.set_dropout(True)
    cross_entropy(model(inputs), labels).backward()
    optimizer.step()
    for key, value in fixed.items():
        assert torch.equal(value, before[key]), f"{name} changes {key} in a step; it is frozen."


def _gradients(name: str, adapter: Adapter) -> None:
    model, (inputs, labels) = moved(small_classifier(adapter)), small_batch()
    trainable = model.trainable()

    def losses(rows: slice) -> Tensor:
        some = {key: value[rows] for key, value in inputs.items()}
        return cross_entropy(model(some), labels[rows], reduction="none")

    model.set_dropout(True)  # what a layer does in training only counts; there is no dropout here
    # Each example on its own: nothing of the others may be in its gradient.
    rows = [torch.autograd.grad(losses(slice(i, i + 1)).sum(), list(trainable.values()))
            for i in range(len(labels))]  # fmt: skip
    expected = {n: torch.stack([row[i] for row in rows]) for i, n in enumerate(trainable)}
    whole = float(torch.stack([rows.norm() for rows in expected.values()]).norm())
    hooks = attach_hooks(model)
    try:
        losses(slice(None)).sum().backward()
        for key, p in trainable.items():
            found = getattr(p, "grad_sample", None)
            assert isinstance(found, Tensor), f"{name} has no per-example gradients of {key}."
            # What is 0 but for rounding is compared with the other gradients.
            size = float(expected[key].norm()) + START * whole
            assert float((found - expected[key]).norm()) < EXACT * size, (
                f"{name} has per-example gradients of {key} that are not those of each example."
            )
    finally:
        hooks.cleanup()


def _penalty(name: str, adapter: Adapter) -> None:
    start, model = small_classifier(adapter), moved(small_classifier(adapter))
    for each, inputs in ((start, None), (model, small_batch()[0])):
        if each.penalty is None:
            return
        before = each.penalty()
        number = before.ndim == 0 and bool(before.isfinite())
        assert number, f"{name} has a penalty that is not a finite scalar."
        assert before.requires_grad, f"{name} has a penalty that depends on nothing that trains."
        found = torch.autograd.grad(before, list(each.trainable().values()), allow_unused=True)
        finite = all(bool(g.isfinite().all()) for g in found if g is not None)
        assert finite, f"{name} has a penalty whose gradient is not finite."
        if inputs is not None:
            each(inputs)
            assert torch.equal(each.penalty(), before), (
                f"{name} has a penalty that depends on the data that went through the model."
            )


def _merge(name: str, adapter: Adapter) -> None:
    model, (inputs, _) = moved(small_classifier(adapter)), small_batch()
    started = AdapterState.from_tensors({n: t.double() for n, t in model.initial.tensors().items()})
    now, plain, merged = model.read(started), small_bert().double(), small_bert().double()
    for layer, module in model.layers.items():
        value, base = merged_weight(module), weight_of(plain.get_submodule(layer))
        set_weight(merged.get_submodule(layer), value)
        change, what = None, "has a change() that is"
        if adapter.export == "lora" and layer in now.factors:
            change, what = now.factors[layer], "is exported as LoRA factors that are"
            if adapter.absorbs:
                change = difference(change, started.factors[layer])
        elif isinstance(module, Adapted):
            change = module.change()
        if change is not None:
            scale = module.scaling["default"]  # type: ignore[index]
            assert far(scale * change.product().detach(), value - base) < START, (
                f"{name} {what} not the merged weight less the pretrained one."
            )
    with torch.no_grad():
        ours = model.backbone(**inputs).last_hidden_state
        theirs = merged(**inputs).last_hidden_state
    assert far(theirs, ours) < EXACT, f"{name} computes something else than its merged weights."


def _travels(name: str, adapter: Adapter) -> None:
    model, (inputs, _) = moved(small_classifier(adapter)), small_batch()
    start = model.initial.tensors()
    state = model.read(AdapterState.from_tensors({n: t.double() for n, t in start.items()}))
    received = AdapterState.from_tensors(from_record(to_record(state.tensors())), 1)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder) / "state.safetensors", received)
        resumed = read_checkpoint(Path(folder) / "state.safetensors")
    other: nn.Module = small_classifier(adapter).double()
    other.write(resumed)  # type: ignore[operator]
    model.write(state)
    with torch.no_grad():
        assert far(other(inputs), model(inputs)) < EXACT, (
            f"{name} computes something else in another process that has its state."
        )
