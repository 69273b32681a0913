"""What an adapter may look at before it is attached, on a tiny model of real code."""

import pytest
import torch

from fedsvd.adapters import calibration
from fedsvd.adapters.build import stand_ins
from fedsvd.client.public import spread
from fedsvd.client.worker import build_worker
from fedsvd.data.tokens import tokenise
from fedsvd.errors import InputError
from fedsvd.models.backbone import load_backbone, load_tokenizer
from fedsvd.models.heads import random_head
from fedsvd.objectives.label_texts import label_tokens
from fedsvd.run import config_folder
from fedsvd.strategies.build import build_strategy
from fedsvd.strategies.pairs import check_pair
from tests.conftest import compose_settings
from tests.tiny import make_inputs

LABELS = "data.label_texts=[[bad film,poor plot],[good film,fine plot,very good]]"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("tiny"))


def build(given, *overrides):
    return build_worker(compose_settings(*given, "adapter=gradient", "adapter.rank=2", *overrides))


HEAD = ["model.head=frozen_random", "model.pooling=mean", "model.normalize=true", "model.scale=10"]


def reference(worker, texts, labels):
    """The right singular vectors of every layer's gradient, by plain autograd in float64."""
    settings = worker.settings
    backbone = load_backbone(settings.model).double()
    d, seed = backbone.config.hidden_size, settings.seed
    head = random_head(d, 2, False, seed, torch.device("cpu")).double()
    layers = {n: m for n, m in backbone.named_modules() if n.endswith(("query", "value"))}
    weights = [m.weight.requires_grad_() for m in layers.values()]
    total = 0
    for text, label in zip(texts, labels, strict=True):  # one by one: no padding
        ids = tokenise(load_tokenizer(settings.model), [text], [0], settings.model.max_length)
        states = backbone(input_ids=ids.columns["input_ids"][0][None]).last_hidden_state
        features = torch.nn.functional.normalize(states[0].mean(0), dim=0)
        total = total - (10 * head(features)).log_softmax(0)[label] / len(texts)
    found = torch.autograd.grad(total, weights)
    return {n: torch.linalg.svd(g)[2][:2] for n, g in zip(layers, found, strict=True)}


def same(worker, expected):
    for name, pair in worker.initial.factors.items():
        overlap = (pair.A.double() @ expected[name].mT).abs()
        torch.testing.assert_close(overlap, torch.eye(2).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("privacy", ["none", "dp_sgd"])
def test_a_starts_from_the_gradient_of_the_public_rows_alone(given, privacy):
    worker = build(given, f"privacy={privacy}", "data.public=12", LABELS, *HEAD)
    rows = spread(worker.task.public.tolist(), 64)
    texts = [worker.task.texts[i] for i in rows]
    same(worker, reference(worker, texts, worker.task.labels[rows]))


def test_without_public_rows_the_label_texts_are_public(given):
    worker = build(given, LABELS, *HEAD)
    texts = [(t,) for t in ("bad film", "poor plot", "good film", "fine plot", "very good")]
    same(worker, reference(worker, texts, [0, 0, 1, 1, 1]))
    tokens = label_tokens(worker.settings, worker.task, worker.tokenizer)
    assert tokens.labels.tolist() == [0, 0, 1, 1, 1]


def test_without_either_training_texts_stand_in_where_nothing_is_private(given):
    worker = build(given, "privacy=none", "adapter.calibration=10", *HEAD)
    rows = spread(worker.task.train.tolist(), 10)
    assert len(rows) == 10
    texts = [worker.task.texts[i] for i in rows]
    same(worker, reference(worker, texts, worker.task.labels[rows]))


def test_a_whitened_start_looks_at_inputs_and_gradients_of_public_texts(given):
    told = ["data.public=12", LABELS, *HEAD]
    worker = build(given, "adapter.whiten=0.1", *told)
    names = list(worker.initial.factors)
    plain = build(given, *told)
    rows = plain.task.public.tolist()
    batches = [plain.tokens.batch([row], torch.device("cpu")).inputs for row in rows]
    backbone = load_backbone(plain.settings.model)
    seen = calibration.measure(backbone, names, batches)  # one by one: no padding
    for name, pair in worker.initial.factors.items():
        K = seen[name].moment
        K = K + 0.1 * K.trace() / len(K) * torch.eye(len(K))
        found = pair.A.double() @ K @ pair.A.double().mT
        torch.testing.assert_close(found / found[0, 0], torch.eye(2).double(), rtol=0, atol=1e-3)
        assert not torch.allclose(pair.A, plain.initial.factors[name].A, atol=1e-2)


def test_a_whitened_start_without_privacy_has_stand_ins_for_both(given):
    worker = build(given, "adapter.whiten=0.1", "privacy=none", *HEAD)
    assert stand_ins(worker.settings) == ("validation", "training")
    assert stand_ins(build(given, "privacy=none", *HEAD).settings) == ("training",)
    assert stand_ins(build(given, "privacy=none", "data.public=12", *HEAD).settings) == ()


@pytest.mark.parametrize("more", [[], [LABELS]])
def test_a_whitened_start_under_privacy_needs_public_rows(given, more):
    with pytest.raises(InputError, match=r"data\.public: 0 is not allowed; it must be at least 1"):
        build(given, "adapter.whiten=0.1", *more)


def test_what_is_spread_over_sorted_rows():
    assert spread(range(10, 20), 4) == [10, 12, 15, 17]
    assert spread([3, 5], 4) == [3, 5]
    assert spread([], 4) == []


@pytest.mark.parametrize(
    ("adapter", "privacy"), [("gradient", "dp_sgd"), ("lora_sb", "client_level")]
)
def test_private_texts_are_refused_before_anything_is_read(given, privacy, adapter, monkeypatch):
    monkeypatch.setattr("fedsvd.client.worker.deal", lambda _: pytest.fail("data were read"))
    with pytest.raises(InputError, match=r"data\.public: 0 .*or data\.label_texts given"):
        build(given, f"adapter={adapter}", f"privacy={privacy}", "strategy=fedavg")


def test_clients_with_data_of_their_own_are_refused(given):
    given = [*given, "partition=own", "privacy=none", "strategy=fedsb"]
    settings = compose_settings(*given, "adapter=lora_sb", LABELS)
    with pytest.raises(
        InputError, match="lora_sb starts from public texts, and with partition=own"
    ):
        check_pair(settings, build_strategy(settings.strategy), config_folder())


def test_a_head_of_zeros_lets_no_gradient_through(given):
    with pytest.raises(InputError, match=r"is zero; .*choose model\.head_init=texts"):
        build(given, LABELS, "model.head=trained", "model.head_init=zeros")
    worker = build(given, LABELS, "model.head=trained", "model.head_init=texts")
    assert "head.weight" in worker.initial.extra
    for pair in worker.initial.factors.values():
        torch.testing.assert_close(pair.A @ pair.A.mT, torch.eye(2), rtol=0, atol=1e-5)


def test_the_model_is_left_as_it_was(given, monkeypatch):
    seen = {}
    right = calibration.mean_gradients

    def watched(backbone, names, losses):
        before = {n: (p.clone(), p.requires_grad) for n, p in backbone.named_parameters()}
        found = right(backbone, names, losses)
        for n, p in backbone.named_parameters():
            assert torch.equal(p, before[n][0]), n
            assert p.grad is None, n
            assert p.requires_grad == before[n][1], n
        seen.update(found)
        return found

    monkeypatch.setattr(calibration, "mean_gradients", watched)
    build(given, LABELS, *HEAD)
    assert len(seen) == 4
    assert {g.dtype for g in seen.values()} == {torch.float64}


@pytest.mark.parametrize("texts", ["[[bad],[good],[odd]]", "[[bad],[]]"])
def test_label_texts_that_do_not_fit_the_labels_are_refused(given, texts):
    with pytest.raises(InputError, match=r"data\.label_texts: .*each of the 2 labels \(0, 1\)"):
        build(given, f"data.label_texts={texts}")
