"""Heads: fixed by geometry, in float64, and of two layers, beside Transformers' own."""

import math

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from transformers.models.roberta.modeling_roberta import RobertaClassificationHead

from fedsvd.adapters.lora import Attached
from fedsvd.client.training import train_locally
from fedsvd.client.worker import build_worker
from fedsvd.errors import InputError
from fedsvd.lowrank import AdapterState
from fedsvd.models.backbone import load_backbone
from fedsvd.models.classifier import Classifier
from fedsvd.models.fixed_heads import (
    GrassmannHead,
    equiangular,
    fixed_head,
    simplex_etf,
    subspaces,
)  # fmt: skip
from fedsvd.models.heads import STD, scores, text_head, two_layer_head
from fedsvd.settings import ModelSettings
from fedsvd.testing.architectures import ARCHITECTURES, small_worker
from tests.conftest import compose_settings
from tests.privacy.steps import GIVEN, N, moved_state, step_sum
from tests.privacy.test_exactness import by_brute_force
from tests.tiny import make_inputs

CPU = torch.device("cpu")


def g(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("classes", [2, 3, 10, 16])
def test_simplex_etf(classes):
    M = simplex_etf(16, classes, g())
    gram = torch.full((classes, classes), -1 / (classes - 1), dtype=M.dtype)
    gram.fill_diagonal_(1.0)
    torch.testing.assert_close(M @ M.mT, gram, rtol=0, atol=1e-12)
    torch.testing.assert_close(M.sum(0), torch.zeros(16, dtype=M.dtype), rtol=0, atol=1e-12)


def test_equiangular_vectors_keep_the_bound_and_few_are_orthonormal():
    for classes, cosine in ((8, 0.01), (20, 0.45), (40, 0.6)):
        V = equiangular(8, classes, cosine, g())
        gram = V @ V.mT
        torch.testing.assert_close(gram.diagonal(), torch.ones(classes, dtype=V.dtype))
        assert float((gram - torch.eye(classes, dtype=V.dtype)).abs().max()) <= cosine
    with pytest.raises(InputError, match=r"least possible is 0\.281"):
        equiangular(8, 20, 0.1, g())  # below the Welch bound, sqrt(12 / (8 x 19))
    assert math.sqrt(12 / (8 * 19)) == pytest.approx(0.281, abs=1e-3)


@pytest.mark.parametrize(("features", "classes", "dim"), [(32, 3, 8), (16, 4, 8)])
def test_grassmann_logits_are_lengths_of_projections(features, classes, dim):
    S = subspaces(features, classes, dim, g())
    eye = torch.eye(dim, dtype=S.dtype).expand(classes, dim, dim)
    torch.testing.assert_close(S @ S.mT, eye, rtol=0, atol=1e-12)
    if classes * dim <= features:
        flat = S.flatten(0, 1)
        torch.testing.assert_close(flat @ flat.mT, torch.eye(classes * dim, dtype=S.dtype))
    x = torch.randn(5, features, generator=g(1), dtype=S.dtype)
    found = GrassmannHead(S)(x)
    for n in range(5):
        for k in range(classes):
            projection = S[k].mT @ S[k] @ x[n]  # onto the subspace
            assert float(found[n, k]) == pytest.approx(float(projection.norm() / x[n].norm()))
    scaled = GrassmannHead(S)(7 * x)
    torch.testing.assert_close(scaled, found)


def test_a_head_of_texts_holds_unit_rows_from_the_mean_over_classes():
    given = torch.randn(3, 7, generator=g(4))
    head = text_head(given, bias=True)
    x = given.double().numpy()
    centred = x - x.mean(0)
    expected = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(head.weight.detach().numpy(), expected, atol=1e-6)
    assert not head.bias.any()
    assert text_head(given, bias=False).bias is None


LABEL_TEXTS = [["good film", "very fine plot is a fine plot"], ["bad", "poor film", "not good"]]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("head", ["frozen_texts", "trained"])
def test_label_texts_become_the_head_which_trains_or_does_not(head, pooling, tmp_path):
    """Beside Transformers on one text after another, unpadded, in float64."""
    settings = compose_settings(
        *make_inputs(tmp_path), f"data.label_texts={LABEL_TEXTS}",
        f"model.head={head}", "model.head_init=texts", f"model.pooling={pooling}",
        "model.normalize=true",
    )  # fmt: skip
    worker = build_worker(settings)
    folder = settings.model.name
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    model = model.double().eval()
    means = []
    for texts in LABEL_TEXTS:
        with torch.no_grad():
            hidden = [model(**tokenizer(t, return_tensors="pt")).last_hidden_state for t in texts]
        features = [h[0, 0] if pooling == "cls" else h[0].mean(0) for h in hidden]
        means.append(sum(f / f.norm() for f in features) / len(texts))
    centred = torch.stack(means) - sum(means) / 2
    expected = centred / centred.norm(dim=1, keepdim=True)
    found = worker.model.head.weight.detach().double()
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-4)  # float32, small differences
    trained = {n for n in worker.model.trainable() if n.startswith("head")}
    assert bool(trained) == (head == "trained")
    start = worker.initial
    for number in (1, 2):
        train_locally(worker, start, 0, number)
    moved = not torch.equal(worker.model.head.weight.detach().double(), found)
    assert moved == (head == "trained")


def values(head):
    (found,) = head.parameters()
    return found


@pytest.mark.parametrize("kind", ["etf", "equiangular", "grassmann", "grassmann_fixed"])
def test_a_head_follows_from_its_seed_alone(kind):
    before = torch.random.get_rng_state()
    one, two, other = (values(fixed_head(kind, 32, 3, seed, CPU)) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("kind", ["etf", "equiangular", "grassmann"])
def test_a_head_does_not_depend_on_the_number_of_threads(kind):
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(values(fixed_head(kind, 384, 100, 0, CPU)))
        assert torch.get_num_threads() == threads
    assert torch.equal(*found)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="at most 4 classes"):
        fixed_head("etf", 4, 5, 0, CPU)
    with pytest.raises(InputError, match=r"model\.head_dim: 9 is not allowed"):
        fixed_head("grassmann", 8, 3, 0, CPU, dim=9)


def test_two_layers_are_those_of_transformers():
    """Values, gradients of the features, and the places of dropout, with one draw for both."""
    config = RobertaConfig(hidden_size=24, num_labels=3, hidden_dropout_prob=0.3)
    ours = two_layer_head(24, 3, True, 0, CPU, dropout=0.3)
    theirs = RobertaClassificationHead(config)
    theirs.load_state_dict(ours.state_dict())  # the names are theirs too
    hidden = torch.randn(5, 7, 24, generator=g(1))
    for training in (False, True):
        found = []
        for head in (ours.train(training), theirs.train(training)):
            x = hidden.clone().requires_grad_(True)
            with torch.random.fork_rng():
                torch.manual_seed(2)
                logits = head(x[:, 0] if head is ours else x)
            (gradient,) = torch.autograd.grad(logits.square().sum(), x)
            found.append((logits, gradient))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    dropped = ours(hidden[:, 0])
    ours.eval()
    assert not torch.allclose(dropped, ours(hidden[:, 0]))
    torch.testing.assert_close(
        scores(dict(ours.named_parameters()), hidden[:, 0]), ours(hidden[:, 0])
    )


def test_the_published_model_is_transformers_whole_classifier(tmp_path):
    """Backbone, first token and head together, while evaluating and, with dropout 0.1, training."""
    config = RobertaConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_labels=3,
        intermediate_size=32, max_position_embeddings=40, pad_token_id=1,
        attn_implementation="eager",
    )  # fmt: skip
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.1, 0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = RobertaForSequenceClassification(config)
    theirs.save_pretrained(tmp_path)
    backbone = load_backbone(ModelSettings(str(tmp_path), dropout=0.1))
    head = two_layer_head(16, 3, True, 0, CPU, dropout=0.1)
    head.load_state_dict(theirs.classifier.state_dict())
    ours = Classifier(
        Attached(backbone, {}, AdapterState({})), head, pooling="cls", normalize=False, scale=1.0,
        precision="fp32", head_trains=False,
    )  # fmt: skip
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    ids = torch.tensor([[0, 5, 9, 7, 2], [0, 8, 2, 1, 1]])
    found = {}
    for training in (False, True):
        ours.set_dropout(training)
        theirs.train(training)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(1)
            one = ours({"input_ids": ids, "attention_mask": mask})
            torch.manual_seed(1)
            other = theirs(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        found[training] = one
    assert not torch.allclose(found[True], found[False], atol=1e-4)


def test_two_layers_start_as_transformers_has_them():
    before = torch.random.get_rng_state()
    one, two, other = (two_layer_head(256, 4, True, seed, CPU) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    drawn = one.dense.weight.detach().double().flatten()
    count = drawn.numel()
    assert abs(float(drawn.mean())) < 5 * STD / count**0.5
    assert abs(float(drawn.std()) / 0.02 - 1) < 5 / (2 * count) ** 0.5
    assert abs(float(drawn.div(0.02).pow(4).mean()) - 3) < 5 * (96 / count) ** 0.5  # normal tails
    assert abs(float(one.out_proj.weight.detach().std()) / 0.02 - 1) < 5 / (2 * 1024) ** 0.5
    assert not one.dense.bias.any()
    assert not one.out_proj.bias.any()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.dense.weight, other.dense.weight)
    zero = two_layer_head(16, 4, False, 0, CPU, zeros=True)
    assert not zero.out_proj.weight.any()
    assert bool(zero.dense.weight.all())
    assert [n for n, _ in zero.named_parameters()] == ["dense.weight", "out_proj.weight"]


@pytest.mark.parametrize("head", ["trained", "frozen_random"])
def test_gradients_through_two_layers_are_each_examples_own(head):
    """Hooks are found right by measuring, and a step's sum is that of a loop by plain autograd."""
    given = [*GIVEN, f"model.head={head}", "model.head_form=two_layer", "model.head_init=random"]
    worker = small_worker(ARCHITECTURES["BERT"], *given, n=N)
    assert worker.plan.gradients == "hooks"
    of_head = {n for n in worker.model.trainable() if n.startswith("head.")}
    names = {f"head.{layer}.{p}" for layer in ("dense", "out_proj") for p in ("weight", "bias")}
    assert of_head == (names if head == "trained" else set())
    state = moved_state(worker)
    torch.testing.assert_close(
        step_sum(worker, range(N), state), by_brute_force(worker, state), rtol=1e-4, atol=1e-5
    )


def test_a_frozen_head_drops_while_clients_train_and_not_after():
    given = [*GIVEN, "model.head=frozen_random", "model.head_form=two_layer", "model.dropout=0.5"]
    worker = small_worker(ARCHITECTURES["BERT"], *given, n=N)
    modes = []
    worker.model.head.register_forward_hook(lambda head, *_: modes.append(head.dropout.training))
    train_locally(worker, worker.initial, 0, 1)
    assert modes
    assert all(modes)
    modes.clear()
    worker.outputs(range(4))
    assert modes == [False] * len(modes) != []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["model.head_form=two_layer"], r"model\.head_init: 'texts' .* texts start a linear head"),
        (["model.head_form=two"], r"model\.head_form: 'two'"),
        (["model.head_form=two_layer", "model.head=etf"], r"model\.head_form: .* model\.head=etf"),
        (["model.head_form=two_layer", "model.head=frozen_texts"], r"model\.head_form: "),
    ],
)
def test_forms_that_a_head_cannot_have_are_refused(settings, given, told):
    with pytest.raises(InputError, match=told):
        settings(*given)


@pytest.mark.parametrize(
    ("head", "more", "scale", "unit"),
    [
        ("equiangular", {}, 1 / 0.07, True),
        ("equiangular", {"normalize": False}, 1 / 0.07, True),  # cosines need unit features
        ("grassmann", {"normalize": False}, 25, False),  # it divides by the length itself
        ("grassmann_fixed", {}, 25, True),
        ("etf", {"normalize": False}, 10, True),
        ("trained", {}, 10, True),
        ("frozen_random", {"normalize": False}, 1, False),
        ("equiangular", {"scale": 3.0}, 3, True),
        ("grassmann", {"scale": 3.0, "temperature": 0.5}, 2, True),
    ],
)
def test_scales_are_those_published_unless_one_is_given(head, more, scale, unit):
    settings = ModelSettings("x", head=head, **more)
    assert settings.logit_scale == pytest.approx(scale)
    assert settings.unit_features == unit
    assert settings.head_trains == (head in ("grassmann", "trained"))
