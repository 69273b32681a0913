"""What Transformers loads by itself: the logits of a run's classifier, or a reason why not."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    pipeline,
)

from fedsvd.errors import InputError
from fedsvd.exports.load import LoadedClassifier
from fedsvd.exports.publish import publish
from fedsvd.exports.sequence import to_transformers
from fedsvd.models.backbone import load_tokenizer
from tests.conftest import compose_settings

SMALL = {"vocab_size": 30522, "initializer_range": 0.3}
FAMILIES = {
    "bert": (BertModel, BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, **SMALL)),
    "roberta": (RobertaModel, RobertaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        pad_token_id=0, **SMALL)),
    "distilbert": (DistilBertModel, DistilBertConfig(
        dim=16, n_layers=1, n_heads=2, hidden_dim=16, **SMALL)),
    "gpt2": (GPT2Model, GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64, **SMALL)),
}  # fmt: skip
TEXTS = ["a text", "another text that is longer than the first one", "what a film!"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(compose_settings().model)


def loaded(family, tokenizer, two=False, bias=True, **changes):
    cls, config = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = cls(config).eval()
        names = ["dense", "out_proj"] if two else [""]
        sizes = {"dense": 16, "out_proj": 3, "": 3}
        head = {}
        for name in names:
            dot = f"{name}." if name else ""
            head[f"{dot}weight"] = torch.randn(sizes[name], 16)
            if bias:
                head[f"{dot}bias"] = torch.randn(sizes[name])
    pooling = "last" if family == "gpt2" else "cls"
    if family == "gpt2":  # whose tokenisers know no kinds of tokens
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]", unk_token="[UNK]",
            model_input_names=["input_ids", "attention_mask"],
        )  # fmt: skip
    model = replace(
        compose_settings().model, pooling=pooling, normalize=False, head="trained", scale=2.0,
        max_length=32, **changes,
    )  # fmt: skip
    return LoadedClassifier(tokenizer, backbone, head, model, ("bad", "so so", "good"), 1)


@pytest.mark.parametrize(
    ("family", "two", "bias"),
    [("bert", False, True), ("bert", True, True), ("roberta", False, False),
     ("roberta", True, True), ("distilbert", False, True), ("gpt2", False, False)],
)  # fmt: skip
def test_the_pipeline_gives_the_same_logits(family, two, bias, tokenizer, tmp_path):
    run = loaded(family, tokenizer, two, bias)
    expected = run.logits(TEXTS)
    to_transformers(run, tmp_path / "out")
    _, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    classify = pipeline("text-classification", model=str(tmp_path / "out"))
    found = classify(TEXTS, top_k=None, function_to_apply="none")
    for row, told in zip(expected, found, strict=True):
        scores = {one["label"]: one["score"] for one in told}
        ours = dict(zip(run.labels, row.tolist(), strict=True))
        assert scores == pytest.approx(ours, abs=1e-4 * max(1, float(row.abs().max())))
    assert run.predict(TEXTS) == [max(told, key=lambda x: x["score"])["label"] for told in found]


@pytest.mark.parametrize(
    ("family", "changes", "why"),
    [
        ("bert", {"pooling": "mean"}, "reads the first token"),
        ("bert", {"normalize": True}, "features of length 1"),
        ("gpt2", {}, "has no form"),
    ],
)
def test_what_has_no_such_form_is_refused(family, changes, why, tokenizer, tmp_path):
    run = loaded(family, tokenizer)
    run = replace(run, model=replace(run.model, **changes))
    with pytest.raises(InputError, match=why):
        to_transformers(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_logits_are_not_written(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("fedsvd.exports.sequence.SMALL", 1.0)  # tanh is not linear there
    with pytest.raises(InputError, match="other logits"):
        to_transformers(loaded("bert", tokenizer), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_whose_noise_can_be_taken_away_is_not_published(tmp_path):
    with pytest.raises(InputError, match="holds nothing to publish"):
        publish(tmp_path, "owner/name")
    (tmp_path / "adapter").mkdir()
    with pytest.raises(InputError, match="no finished run"):
        publish(tmp_path, "owner/name")
    told = {"epsilon_max": 1.0, "noise_source": "from the run's seed: repeatable, do not publish"}
    (tmp_path / "summary.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match="secure_noise=true"):
        publish(tmp_path, "owner/name")
