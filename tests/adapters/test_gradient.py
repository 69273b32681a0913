"""Starts from gradients of public texts, and one A for a group, against independent computations."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers.pytorch_utils import Conv1D

from fedsvd.adapters import Gradient, LoraGA, LoraSB, Site, Xkv, calibration, lora
from fedsvd.adapters.adapted import NAME, merged_weight
from fedsvd.adapters.base import Inputs
from fedsvd.adapters.targets import groups_of
from fedsvd.errors import InputError
from fedsvd.randomness import Purpose, torch_stream
from fedsvd.settings import AdapterSettings
from fedsvd.testing.small import small_batch, small_bert

R = 3


def drawn(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def falling(d_out, d_in, seed=0):
    """A matrix of singular values 1, 1/2, 1/4, ..., which a randomised SVD finds too."""
    k = min(d_out, d_in)
    U, V = (torch.linalg.qr(drawn(d, k, seed=seed + i))[0] for i, d in enumerate((d_out, d_in)))
    return U * 2.0 ** -torch.arange(k) @ V.mT


def site(W, G, rank=R, alpha=6.0):
    stream = torch_stream(0, Purpose.ADAPTER, "layer")
    return Site("layer", W, rank, alpha, stream, gradient=G)


def close(found, expected, tolerance=1e-9):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=tolerance)


@pytest.mark.parametrize("stored", [nn.Linear, Conv1D])
def test_the_mean_gradient_is_the_closed_form_of_softmax_regression(stored):
    layer = nn.Linear(4, 3, bias=False) if stored is nn.Linear else Conv1D(3, 4)
    model = nn.Sequential(layer).double().requires_grad_(False)
    x, y = drawn(7, 4), torch.tensor([0, 1, 2, 0, 1, 2, 2])
    weight = layer.weight if stored is nn.Linear else layer.weight.mT
    batches = [slice(0, 2), slice(2, 7)]  # of unequal sizes: every example counts alike
    losses = (cross_entropy(model(x[b]), y[b], reduction="none") for b in batches)
    G = calibration.mean_gradients(model, ["0"], losses)["0"]
    z = np.exp((x @ weight.mT).numpy())
    apart = z / z.sum(1, keepdims=True) - np.eye(3)[y.numpy()]
    close(G, apart.T @ x.numpy() / 7)
    assert G.dtype == torch.float64
    assert not layer.weight.requires_grad


def test_a_weight_that_the_loss_does_not_depend_on_has_gradient_zero():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)}).requires_grad_(False)
    losses = (model["used"](torch.ones(3, 2)).sum(1) for _ in range(2))
    found = calibration.mean_gradients(model, ["used", "idle"], losses)
    close(found["used"], np.ones((2, 2)))
    assert not found["idle"].any()


def test_golden_starts_of_a_gradient_that_is_known():
    """G = [[0, -4, 0], [3, 0, 0], [0, 0, 1]]: V = e2, e1, e3 and U = -e1, e2, e3, S = 4, 3, 1."""
    G = torch.tensor([[0.0, -4, 0], [3, 0, 0], [0, 0, 1]], dtype=torch.float64)
    W = drawn(3, 3)
    pair = Gradient().factors(site(W, G, rank=2))
    close(pair.A, [[0, 1, 0], [1, 0, 0]])
    close(pair.B, np.zeros((3, 2)))
    c = 3**0.25 / 4
    pair = LoraGA().factors(site(W, G, rank=1))
    close(pair.A, [[0, c, 0]])
    close(pair.B, [[0], [c], [0]])
    pair = LoraGA(gamma=4, form="peft").factors(site(W, G, rank=1))
    close(pair.A, [[0, 1, 0]])
    close(pair.B, [[0], [3 * 3**0.25 / 2], [0]])
    base = nn.Linear(3, 3, bias=False).double()
    layer = LoraSB(rate=0.5).adapt(base, site(W, G, rank=2))  # s = 3
    close(layer.core.weight.detach(), [[2 / 3, 0], [0, 0.5]])
    close(layer.A, [[0, 1, 0], [1, 0, 0]])
    close(layer.B, [[1, 0], [0, -1], [0, 0]])


@pytest.mark.parametrize("shape", [(12, 16), (16, 12)])
def test_one_step_on_b_moves_the_weight_by_the_best_approximation_of_the_gradient(shape):
    W, G = drawn(*shape), drawn(*shape, seed=1)
    pair = Gradient().factors(site(W, G))
    U, S, Vt = np.linalg.svd(G.numpy())
    close(pair.A @ pair.A.mT, np.eye(R))
    close(G @ pair.A.mT @ pair.A, U[:, :R] * S[:R] @ Vt[:R])  # dB = -lr s G A^T
    assert bool((pair.A.gather(1, pair.A.abs().argmax(1, keepdim=True)) > 0).all())
    # Signs and order do not follow the sign of the gradient.
    close(Gradient().factors(site(W, -G)).A, pair.A)


def whitened(G, moment, whiten):
    place = replace(site(drawn(*G.shape), G), inputs=Inputs(moment, moment[0], 1))
    return Gradient(whiten=whiten).factors(place).A


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_whitened_rows_hold_most_of_the_gradient_of_all_whitened_rows(ridge):
    G, x = drawn(12, 16, seed=1), drawn(40, 16, seed=2) * torch.arange(1, 17)
    moment = x.mT @ x / 40
    A = whitened(G, moment, ridge)
    K = moment + ridge * moment.trace() / 16 * torch.eye(16).double()
    size = A[0] @ K @ A[0]
    close(A @ K @ A.mT, size * torch.eye(R).double())
    assert float(A.square().sum()) == pytest.approx(R)
    values, vectors = np.linalg.eigh(K.numpy())
    root = torch.as_tensor(vectors / np.sqrt(values) @ vectors.T)
    best = float((G @ A.mT).norm())
    for seed in range(20):
        Q = torch.linalg.qr(drawn(16, R, seed=seed)).Q
        assert float((G @ root @ Q).norm()) * float(size) ** 0.5 < best


def test_whitening_does_nothing_where_inputs_are_white_or_the_ridge_is_all():
    G, x = drawn(12, 16, seed=1), drawn(40, 16, seed=2)
    plain = Gradient().factors(site(drawn(12, 16), G)).A
    close(whitened(G, torch.eye(16).double() * 7, 0.1), plain)
    close(whitened(G, x.mT @ x / 40, 1e12), plain, 1e-6)
    close(whitened(G, torch.diag((torch.arange(16) > 0).double()), 0.1).isfinite(), True)


def test_inputs_that_are_all_zero_cannot_be_whitened():
    with pytest.raises(InputError, match="layer on public texts is not finite"):
        whitened(drawn(12, 16), torch.zeros(16, 16).double(), 0.1)


def test_what_a_layer_sees_must_be_finite():
    bert, names = small_bert(), ["encoder.layer.0.attention.self.query"]
    batch = small_batch()[0]
    assert calibration.measure(bert, names, [batch])[names[0]].moment.isfinite().all()
    bert.embeddings.word_embeddings.weight[int(batch["input_ids"][0, 0])] = float("nan")
    with pytest.raises(InputError, match=r"self\.query sees of them is not finite"):
        calibration.measure(bert, names, [batch])


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan"), float("inf")])
def test_a_ridge_that_whitens_nothing_is_refused(ridge):
    with pytest.raises(InputError, match=r"adapter\.whiten: .*a number above 0, or null"):
        Gradient(whiten=ridge)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_lora_ga_is_the_published_formula(scale):
    W, G = drawn(12, 16), drawn(12, 16, seed=1)
    place = site(W, G, alpha=R * scale)
    pair = LoraGA(gamma=9.0).factors(place)
    U, _, Vt = np.linalg.svd(G.numpy())
    c = 12**0.25 / 3
    sides = (pair.A.numpy() @ Vt[:R].T / c, U[:, R : 2 * R].T @ pair.B.numpy() / c)
    for side in sides:  # up to the signs of vectors
        close(np.abs(side), np.eye(R))
    close(LoraGA(gamma=9.0).residual(place, pair), W - scale * pair.product())


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_lora_ga_in_pefts_form_is_what_peft_computes(scale):
    from peft import LoraConfig, LoraGAConfig, get_peft_model

    W, G = drawn(24, 32).float(), falling(24, 32, seed=1)
    layer = nn.Sequential(nn.Linear(32, 24, bias=False))
    layer[0].weight.data.copy_(W)
    layer[0]._peft_loraga_grad = G.float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(
            r=R, lora_alpha=R * scale, target_modules=["0"], init_lora_weights="lora_ga",
            lora_ga_config=LoraGAConfig(stable_gamma=16),
        )  # fmt: skip
        theirs = get_peft_model(layer, config).base_model.model[0]
    A, B = theirs.lora_A[NAME].weight.detach(), theirs.lora_B[NAME].weight.detach()
    place = site(W, G, alpha=R * scale)
    ours = LoraGA(form="peft").factors(place)
    close((ours.A.float() @ A.mT).abs(), np.eye(R), 1e-5)
    size = float(B.norm())
    turn = (ours.B.float() * B).sum(0).sign()  # of single vectors, which the SVD leaves open
    close(ours.B.float() * turn, B, 1e-5 * size)
    # Each keeps the pretrained function: W_frozen + s B A = W.
    close(theirs.base_layer.weight.detach() + scale * B @ A, W, 1e-5)
    close(LoraGA(form="peft").residual(place, ours) + scale * ours.product(), W, 1e-5)
    # What the paper says has no singular values in it: B there is longer where they are below 1.
    published = LoraGA().factors(place)
    close(published.B.norm(dim=0), 3 * [24**0.25 / 4])


@pytest.mark.parametrize("step", ["gradient", "sign"])
@pytest.mark.parametrize("alpha", [3.0, 6.0])
def test_lora_sb_starts_at_the_best_approximation_of_the_first_step(step, alpha):
    W, G = drawn(12, 16), drawn(12, 16, seed=1)
    base = nn.Linear(16, 12, bias=False).double().requires_grad_(False)
    base.weight.data.copy_(W)
    layer = LoraSB(step=step, rate=0.01).adapt(base, site(W, G, alpha=alpha))
    moved = -0.01 * (G if step == "gradient" else G.sign()).numpy()
    U, S, Vt = np.linalg.svd(moved)
    close(merged_weight(layer) - W, U[:, :R] * S[:R] @ Vt[:R])
    core = layer.trained()["R"].detach()
    close(core, np.diag(S[:R]) * R / alpha)
    close(layer.A @ layer.A.mT, np.eye(R))
    close(layer.B.mT @ layer.B, np.eye(R))
    assert set(layer.trained()) == {"R"}


@pytest.mark.parametrize(
    ("G", "rank", "sentence"),
    [
        (torch.zeros(4, 5), 2, "is zero; a head that starts at zeros"),
        (torch.ones(4, 5), 2, "has rank 1, and 2 directions are asked for"),
        (torch.full((4, 5), float("nan")), 2, "is not finite"),
        (torch.ones(4, 5), 5, "needs 5 singular vectors and is 4 x 5"),
    ],
)
def test_a_gradient_that_says_too_little_is_refused(G, rank, sentence):
    with pytest.raises(InputError, match=sentence):
        Gradient().factors(site(torch.zeros(4, 5), G.double(), rank))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LoraSB(step="adam"), r"adapter\.step: 'adam'"),
        (lambda: LoraSB(rate=-1), r"adapter\.rate: -1"),
        (lambda: LoraGA(gamma=0), r"adapter\.gamma: 0"),
        (lambda: LoraGA(form="pefd"), r"adapter\.form: 'pefd'.*did you mean 'peft'"),
        (lambda: Xkv(blocks=1), r"adapter\.blocks: 1"),
        (lambda: Xkv(source="keys"), r"adapter\.source: 'keys'"),
    ],
)
def test_wrong_options_are_refused_with_their_key(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


class Blocks(nn.Module):
    """Five blocks with a query of one shape, a wide one in block 3, and a layer outside of them."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"query": nn.Linear(6, 8 if k == 3 else 4), "key": nn.Linear(6, 4)})
            for k in range(5)
        )
        self.pooler = nn.Linear(6, 6)


def test_a_group_are_the_layers_of_one_kind_and_shape_in_adjacent_blocks():
    names = ["blocks.0.query", "blocks.2.query", "blocks.3.query", "blocks.4.key", "pooler"]
    assert groups_of(Blocks(), names, 2) == {
        "blocks.0.query": ("blocks.0.query", "blocks.1.query"),
        "blocks.2.query": ("blocks.2.query",),
        "blocks.3.query": ("blocks.3.query",),
        "blocks.4.key": ("blocks.4.key",),
        "pooler": ("pooler",),
    }
    assert groups_of(Blocks(), names, 1) == {name: (name,) for name in names}


def attach(adapter, backbone, measure=None, differentiate=None):
    settings = AdapterSettings(
        "lora", rank=R, alpha=3.0, targets=("query",), ranks={"encoder.layer.1.*": 2}
    )
    return lora.attach(
        backbone, settings, 0, ("B",), measure, adapter, differentiate=differentiate
    ).initial.factors


@pytest.mark.parametrize("source", ["weights", "inputs", "gradients"])
def test_xkv_holds_the_right_singular_vectors_of_the_stack(source):
    backbone = small_bert()
    names = [f"encoder.layer.{k}.attention.self.query" for k in range(2)]
    layers = dict(backbone.named_modules())
    inputs, _ = small_batch()
    G = {name: drawn(16, 16, seed=k) for k, name in enumerate(names)}
    seen = {name: [] for name in names}
    for name in names:
        layers[name].register_forward_pre_hook(lambda _, x, name=name: seen[name].append(x[0]))
    with torch.no_grad():
        backbone(**inputs)
    mask = inputs["attention_mask"].bool()
    stacks = {
        "weights": [layers[name].weight for name in names],
        "inputs": [seen[name][0][mask] for name in names],
        "gradients": [G[name] for name in names],
    }
    tall = np.concatenate([t.detach().double().numpy() for t in stacks[source]])
    best = np.linalg.svd(tall)[2][:R]
    found = attach(
        Xkv(blocks=2, source=source), copy.deepcopy(backbone),
        lambda names: calibration.measure(backbone, names, [inputs]), lambda names: G,
    )  # fmt: skip
    first, second = (found[name] for name in names)
    assert torch.equal(first.A[:2], second.A)  # one A, of which the layer of rank 2 has two rows
    close(np.abs(first.A.numpy() @ best.T), np.eye(R), 1e-5)
    assert not first.B.any()
    # No other rows of A keep more of the stack; each layer's own keep less of it.
    own = np.linalg.svd(tall[: len(tall) // 2])[2][:R]
    kept = [np.square(tall @ rows.T).sum() for rows in (first.A.double().numpy(), best, own)]
    assert kept[0] == pytest.approx(kept[1], rel=1e-5)
    assert kept[2] < kept[1]


def test_gradients_are_taken_on_one_thread_whatever_the_process_has():
    G = {f"encoder.layer.{k}.attention.self.query": drawn(16, 16, seed=k) for k in range(2)}

    def differentiate(names):
        assert torch.get_num_threads() == 1
        return G

    torch.set_num_threads(2)  # the fixture sets it back
    found = attach(Gradient(), small_bert(), differentiate=differentiate)
    assert torch.get_num_threads() == 2
    for name, pair in found.items():
        rows = np.linalg.svd(G[name].numpy())[2][: len(pair.A)]
        close(np.abs(pair.A.numpy() @ rows.T), np.eye(len(rows)), 1e-6)


@pytest.mark.parametrize("adapter", [Gradient(), Xkv(source="gradients"), Xkv(source="inputs")])
def test_without_public_texts_nothing_can_start_from_them(adapter):
    with pytest.raises(InputError, match="needs public texts"):
        attach(adapter, small_bert())
