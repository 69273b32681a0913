"""The conformance kit: ours pass, planted faults fail with a sentence that names them."""

import pytest
import torch
from opacus.grad_sample import register_grad_sampler
from torch import nn

from fedsvd import adapters
from fedsvd.adapters import Adapted, Initialiser, Parametrisation, Spectrum
from fedsvd.adapters.initial import kaiming
from fedsvd.adapters.linear import FactorLinear
from fedsvd.adapters.lora_xs import SmallCore
from fedsvd.adapters.triplets import leading
from fedsvd.client import training
from fedsvd.lowrank import LowRank
from fedsvd.testing import check_adapter, steps

OURS = [
    ("Cayley", {}),
    ("Dct", {"rows": "low"}),
    ("Dct", {}),
    ("Dora", {"magnitude": "frozen"}),
    ("Dora", {"magnitude": "renormalised"}),
    ("Dora", {}),
    ("Effort", {"orthogonality": 0.0, "energy": 0.0}),
    ("Effort", {"energy": 0.0}),
    ("Effort", {}),
    ("Eora", {"compression": "prune"}),
    ("Eora", {}),
    ("Eva", {"centre": True}),
    ("Eva", {}),
    ("Gradient", {}),
    ("Hadamard", {}),
    ("Imbalanced", {"a": 0.5, "b": 2.0}),
    ("Imbalanced", {}),
    ("Kronecker", {"algebra": "quaternion"}),
    ("Kronecker", {"terms": 2, "algebra": "complex"}),
    ("Kronecker", {}),
    ("Lora", {"init": "gaussian"}),
    ("Lora", {"init": "orthonormal"}),
    ("Lora", {}),
    ("LoraGA", {"form": "peft"}),
    ("LoraGA", {}),
    ("LoraSB", {"rate": 0.0}),
    ("LoraSB", {"step": "sign", "rate": 1e-3}),
    ("LoraSB", {}),
    ("LoraXS", {"start": "orthonormal"}),
    ("LoraXS", {"start": "vectors", "std": 0.0}),
    ("LoraXS", {}),
    ("Milora", {}),
    ("Olora", {}),
    ("Pissa", {"niter": 4}),
    ("Pissa", {}),
    ("SVFit", {"energy": None}),
    ("SVFit", {}),
    ("Sorsa", {}),
    ("Xkv", {"blocks": 2, "source": "gradients"}),
    ("Xkv", {"blocks": 2, "source": "inputs"}),
    ("Xkv", {}),
]
BASES = {"Adapted", "Adapter", "Initialiser", "Inputs", "Parametrisation", "Site", "Spectrum"}


@pytest.mark.parametrize(("name", "options"), OURS, ids=str)
def test_ours_pass(name, options):
    check_adapter(getattr(adapters, name), **options)


def test_none_of_ours_is_left_out():
    assert {name for name, _ in OURS} == set(adapters.__all__) - BASES


def zeros(site):
    return kaiming(site.weight, site.rank, site.scale, site.generator)


class Draws(Initialiser):
    def factors(self, site):
        return LowRank(torch.randn(site.rank, site.weight.shape[1]), zeros(site).B)


class Silent(Initialiser):
    """Moves part of the weight into the factors without saying so: it is counted twice."""

    def factors(self, site):
        U, S, Vh = leading(site.weight, site.rank)
        return LowRank(Vh, U * S)


class Empty(Initialiser):
    absorbs = True

    def factors(self, site):
        return zeros(site)


class Turned(Initialiser):
    def factors(self, site):
        pair = zeros(site)
        return LowRank(pair.A.mT.contiguous().reshape(-1, site.rank).mT[:1], pair.B[:, :1])


class Counts(Initialiser):
    def __init__(self):
        self.made = 0

    def factors(self, site):
        self.made += 1
        pair = zeros(site)
        return LowRank(pair.A * self.made, pair.B)


class Diagonal(Adapted):
    """y = W x + g * x-ish: a sound layer that the faulty ones below differ from in one thing."""

    def __init__(self, base, site):
        super().__init__(base, site.scale, 0.0)
        pair = zeros(site)
        self.down, self.up = FactorLinear.of(pair.A), FactorLinear.of(pair.B)

    def trained(self):
        return {"down": self.down.weight, "up": self.up.weight}

    def update(self, x):
        return self.up(self.down(x))


class Sound(Parametrisation):
    tensors = ("down", "up")
    layer = Diagonal

    def adapt(self, base, site):
        return self.layer(base, site)


class Undeclared(Sound):
    tensors = ("down",)


class Thaws(Sound):
    def adapt(self, base, site):
        base.weight.requires_grad_(True)
        return Diagonal(base, site)


class Bypass(Diagonal):
    def update(self, x):
        return nn.functional.linear(nn.functional.linear(x, self.down.weight), self.up.weight)


class NoHooks(Sound):
    layer = Bypass


class Doubled(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return nn.functional.linear(x, self.weight)


@register_grad_sampler(Doubled)
def doubled(layer, activations, backprops):
    return {layer.weight: 2 * torch.einsum("n...o,n...i->noi", backprops, activations[0])}


class Twice(Diagonal):
    def __init__(self, base, site):
        super().__init__(base, site)
        self.up = Doubled(self.up.weight.detach().clone())


class WrongGradients(Sound):
    layer = Twice


class Bent(Diagonal):
    def update(self, x):
        return torch.tanh(super().update(x))


class Nonlinear(Sound):
    layer = Bent


class Forgets(Diagonal):
    def trained(self):
        return {"up": self.up.weight}


class Hidden(Sound):
    layer = Forgets


class Wears(Diagonal):
    def __init__(self, base, site):
        super().__init__(base, site)
        self.register_buffer("steps", torch.zeros(1))

    def update(self, x):
        if torch.is_grad_enabled():
            self.steps += 1
        return super().update(x)


class RunningState(Sound):
    layer = Wears


class Guesses(Diagonal):
    def change(self):
        return LowRank(self.down.weight, 2 * self.up.weight)


class WrongChange(Sound):
    layer = Guesses


class Remembers(Diagonal):
    noise = 0

    def __init__(self, base, site):
        super().__init__(base, site)
        Remembers.noise += 1
        self.register_buffer("own", torch.tensor(float(Remembers.noise)), persistent=False)

    def update(self, x):
        return self.own * super().update(x)


class NotShared(Sound):
    layer = Remembers


class Tuple(Initialiser):
    def factors(self, site):
        pair = zeros(site)
        return pair.A, pair.B


class Raises(Initialiser):
    def factors(self, site):
        return LowRank(torch.linalg.inv(site.weight)[: site.rank], zeros(site).B)


class Rounds(Initialiser):
    """Changes the frozen weight, which LoRA factors alone do not say."""

    preserves = False

    def factors(self, site):
        return zeros(site)

    def residual(self, site, pair):
        return site.weight.round(decimals=1)


class OwnDora(Parametrisation):
    """DoRA that says it is exported as LoRA."""

    tensors = ("A", "B", "magnitude")

    def adapt(self, base, site):
        return adapters.Dora().adapt(base, site)


class Louder(Diagonal):
    """Scales its update by the whole batch: an example's gradient depends on the others."""

    def update(self, x):
        y = super().update(x)
        return y * (1 + y.detach().abs().mean()) if self.training else y


class NotAlone(Sound):
    layer = Louder


class Watches(Diagonal):
    seen = 1.0

    def update(self, x):
        self.seen = float(x.detach().norm())
        return super().update(x)


class Leaks(Sound):
    """A regulariser of activations: it would be added outside clipping and noise."""

    layer = Watches

    def penalty(self, layers):
        return sum(layer.seen * layer.down.weight.square().sum() for layer in layers)


class Vector(Sound):
    def penalty(self, layers):
        return torch.stack([layer.down.weight.norm() for layer in layers])


class Constant(Sound):
    def penalty(self, layers):
        return torch.ones(())


class Steep(Sound):
    """The root of B's length: finite at B = 0, its slope is not."""

    def penalty(self, layers):
        return torch.stack([layer.up.weight.square().sum().sqrt().sqrt() for layer in layers]).sum()


class Faint(Sound):
    """A regulariser of its own rate that is too small for float32 to hold its step."""

    decoupled = True

    def penalty(self, layers):
        return 1e-9 * torch.stack([layer.down.weight.square().sum() for layer in layers]).sum()


class Loss(Sound):
    """A regulariser that is a part of the loss."""

    def penalty(self, layers):
        return torch.stack([layer.down.weight.square().sum() for layer in layers]).sum()


class WrongSide(Parametrisation):
    """The start of LoRA-XS with the singular values in B; the paper's are in A."""

    tensors = ("R",)
    spectrum = Spectrum("leading", "core", a=1.0)

    def adapt(self, base, site):
        U, S, Vh = leading(site.weight, site.rank)
        pair = LowRank(Vh.to(site.weight), (U * S).to(site.weight))
        return SmallCore(base, site, pair, torch.zeros(site.rank, site.rank))


class Uneven(Initialiser):
    """The product of PiSSA's factors, but all of S in B: another first step."""

    absorbs = True
    spectrum = Spectrum("leading", "factors", a=0.5, b=0.5, divided=True)

    def factors(self, site):
        U, S, Vh = leading(site.weight, site.rank)
        return LowRank(Vh, U * S / site.scale)


class Middle(Initialiser):
    """Says that it starts from the last triplets, but skips one."""

    absorbs = True
    spectrum = Spectrum("last", "factors", a=0.5, b=0.5, divided=True)

    def factors(self, site):
        U, S, Vh = leading(site.weight, min(site.weight.shape) - 1)
        root = (S / site.scale).sqrt()[-site.rank :]
        return LowRank(root[:, None] * Vh[-site.rank :], U[:, -site.rank :] * root)


class TwoNames(Diagonal):
    def trained(self):
        return {**super().trained(), "again": self.up.weight}


class Tied(Sound):
    tensors = ("down", "up", "again")
    layer = TwoNames


class Stops(Diagonal):
    def __init__(self, base, site):
        super().__init__(base, site)
        self.down.weight.requires_grad_(False)


class Idle(Sound):
    layer = Stops


@pytest.mark.parametrize(
    ("cls", "sentence"),
    [
        (Draws, "Draws draws from the global random generator."),
        (Silent, "Silent declares preserves = True, but it is not so"),
        (Empty, "Empty declares absorbs = True, but it is not so"),
        (Turned, "Turned is refused: adapter: Turned gives factors of shapes"),
        (Counts, "Counts gives other bits for the same stream."),
        (Undeclared, "Undeclared trains up, which its `tensors` do not name."),
        (Thaws, "trainable, which is no part of the state."),
        (Hidden, "down.weight trainable, which is no part of the state."),
        (NoHooks, "NoHooks has no per-example gradients of"),
        (WrongGradients, "WrongGradients has per-example gradients of"),
        (Nonlinear, "Nonlinear computes something else than its merged weights."),
        (RunningState, "steps in a step; it is frozen."),
        (WrongChange, "WrongChange has a change() that is not the merged weight less"),
        (NotShared, "NotShared computes something else in another process that has its state."),
        (Tuple, "Tuple is refused: adapter: Tuple gives no LowRank(A, B) for"),
        (Raises, "Raises raises RuntimeError: linalg.inv"),
        (Rounds, "Rounds is exported as LoRA factors that are not the merged weight"),
        (OwnDora, "OwnDora is exported as LoRA factors that are not the merged weight"),
        (NotAlone, "NotAlone has per-example gradients of"),
        (Leaks, "Leaks has a penalty that depends on the data that went through the model."),
        (Vector, "Vector has a penalty that is not a finite scalar."),
        (Constant, "Constant has a penalty that depends on nothing that trains."),
        (Steep, "Steep has a penalty whose gradient is not finite."),
        (Faint, "Faint has a penalty of its own rate that moves nothing in float32."),
        (WrongSide, "WrongSide takes another first step than its `spectrum` says: that of encoder"),
        (Uneven, "Uneven takes another first step than its `spectrum` says"),
        (Middle, "Middle takes another first step than its `spectrum` says"),
        (Tied, "Tied gives one parameter two names in the state."),
        (Idle, "down travel, which does not train."),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else "",
)
def test_planted_faults_are_found(cls, sentence):
    with pytest.raises(AssertionError) as found:
        check_adapter(cls)
    assert sentence in str(found.value)
    assert "\n" not in str(found.value)


def test_a_sound_parametrisation_of_ones_own_passes():
    check_adapter(Sound)
    check_adapter(Loss)


def old_penalty(model, parameters, settings, round, rounds):
    """The step that SORSA's regulariser once took: lr_t^2 / lr_0 times its gradient."""
    share = training.learning_rate(settings, round, rounds) / settings.lr

    def act():
        found = torch.autograd.grad(model.penalty(), parameters, allow_unused=True)
        for p, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                p.grad = share * gradient if p.grad is None else p.grad + share * gradient

    return act


def only_lr(model, parameters, settings, round, rounds):
    """A regulariser of its own rate that is treated as a loss."""
    model.decoupled = False
    return training.penalty_of(model, parameters, settings, round, rounds)


@pytest.mark.parametrize(
    ("cls", "step", "sentence"),
    [
        (adapters.Sorsa, old_penalty, "vanishes with the learning rate in another way"),
        (adapters.Effort, old_penalty, "vanishes with the learning rate in another way"),
        (adapters.Sorsa, only_lr, "Sorsa declares decoupled = True, but it is not so"),
    ],
)
def test_a_regulariser_that_vanishes_with_the_learning_rate_is_found(
    cls, step, sentence, monkeypatch
):
    monkeypatch.setattr(steps, "penalty_of", step)
    with pytest.raises(AssertionError, match=sentence):
        check_adapter(cls)
