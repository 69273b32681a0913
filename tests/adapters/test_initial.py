import math

import pytest
import scipy.stats
import torch

from fedsvd.adapters import Pissa, Site
from fedsvd.adapters.initial import INITIALISERS
from fedsvd.lowrank import LowRank
from fedsvd.randomness import Purpose, torch_stream

W = torch.randn(24, 32, generator=torch.Generator().manual_seed(0))


def start(name, scale=1.0):
    generator = torch_stream(0, Purpose.ADAPTER, "layer")
    if name == "pissa":
        pair = Pissa().factors(Site("layer", W, 4, 4 * scale, generator))
        return LowRank(pair.A.float(), pair.B.float())
    return INITIALISERS[name](W, 4, scale, generator)


@pytest.mark.parametrize("name", [*sorted(INITIALISERS), "pissa"])
def test_shapes_and_determinism(name):
    pair, again = start(name), start(name)
    assert pair.A.shape == (4, 32)
    assert pair.B.shape == (24, 4)
    assert torch.equal(pair.A, again.A)
    if name != "pissa":
        assert not pair.B.any()


def test_loras_a_has_the_law_that_it_is_called_by():
    """Kolmogorov and Smirnov on 32,768 entries: 0.01 is 1.8 at 1 / sqrt n, one in 700."""
    wide = torch.zeros(3, 4096)
    laws = {"kaiming": scipy.stats.uniform(-1 / 64, 2 / 64), "gaussian": scipy.stats.norm(0, 1 / 8)}
    for name, law in laws.items():
        drawn = INITIALISERS[name](wide, 8, 1.0, torch_stream(0, Purpose.ADAPTER, name)).A
        assert scipy.stats.kstest(drawn.flatten().numpy(), law.cdf).statistic < 0.01


def test_kaiming_and_orthonormal_span_the_same_rows():
    kaiming, ortho = start("kaiming").A, start("orthonormal").A
    assert float(kaiming.abs().max()) <= 1 / math.sqrt(32)
    assert torch.allclose(ortho @ ortho.T, torch.eye(4), atol=1e-6)
    assert torch.allclose(kaiming @ ortho.T @ ortho, kaiming, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_pissa_is_the_truncated_svd_and_what_peft_does(scale):
    pair = start("pissa", scale)
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    best = (U[:, :4] * S[:4]) @ Vh[:4]
    assert torch.allclose(scale * pair.product().double(), best, atol=1e-5)

    from peft import LoraConfig, get_peft_model

    layer = torch.nn.Sequential(torch.nn.Linear(32, 24, bias=False))
    layer[0].weight.data.copy_(W)
    config = LoraConfig(r=4, lora_alpha=4 * scale, target_modules=["0"], init_lora_weights="pissa")
    theirs = get_peft_model(layer, config).base_model.model[0]
    product = theirs.lora_B["default"].weight @ theirs.lora_A["default"].weight
    assert torch.allclose(product, pair.product(), atol=2e-4)
    assert torch.allclose(theirs.base_layer.weight, W - scale * pair.product(), atol=2e-4)
