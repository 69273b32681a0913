"""The conformance kit: ours pass, planted faults fail with a sentence that names them."""

import pytest
import torch
from opacus.grad_sample import register_grad_sampler
from torch import nn

from fedsvd import adapters
from fedsvd.adapters import Adapted, Initialiser, Parametrisation
from fedsvd.adapters.initial import kaiming
from fedsvd.adapters.linear import FactorLinear
from fedsvd.adapters.triplets import leading
from fedsvd.lowrank import LowRank
from fedsvd.testing import check_adapter

OURS = [
    ("Cayley", {}),
    ("Dct", {"rows": "low"}),
    ("Dct", {}),
    ("Dora", {"magnitude": "frozen"}),
    ("Dora", {"magnitude": "renormalised"}),
    ("Dora", {}),
    ("Effort", {}),
    ("Eora", {"compression": "prune"}),
    ("Eora", {}),
    ("Eva", {"centre": True}),
    ("Eva", {}),
    ("Hadamard", {}),
    ("Kronecker", {"algebra": "quaternion"}),
    ("Kronecker", {"terms": 2, "algebra": "complex"}),
    ("Kronecker", {}),
    ("Lora", {"init": "gaussian"}),
    ("Lora", {"init": "orthonormal"}),
    ("Lora", {}),
    ("LoraXS", {"start": "orthonormal"}),
    ("LoraXS", {"start": "vectors", "std": 0.0}),
    ("LoraXS", {}),
    ("Milora", {}),
    ("Olora", {}),
    ("Pissa", {"niter": 4}),
    ("Pissa", {}),
    ("SVFit", {}),
    ("Sorsa", {}),
]
BASES = {"Adapted", "Adapter", "Initialiser", "Inputs", "Parametrisation", "Site"}


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
