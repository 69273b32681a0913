"""Rows that the model cannot take are refused by their line before work, in every part."""

import dataclasses
import json
import re

import pytest

from fedsvd.client.worker import build_worker
from fedsvd.errors import InputError
from tests.conftest import compose_settings
from tests.models.saved import save_model, save_words
from tests.tiny import WORDS

FACE = "\N{GRINNING FACE}"
LONG = "film " * 40


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), add_pooling_layer=False)


def data(folder, **changed):
    """Three files of ten rows; `changed` says what stands as the last text of a part."""
    for part in ("train", "validation", "test"):
        texts = [f"{part[:2]} {WORDS[i]} {WORDS[i - 1]}" for i in range(10)]
        texts[-1] = changed.get(part, texts[-1])
        rows = [{"text": t, "label": i % 2} for i, t in enumerate(texts)]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def settings_of(model, folder, *overrides):
    return compose_settings(
        "data=folder", f"data.path={folder}", "data.labels=['0','1']", "data.public_size=10",
        "model=custom", f"model.name={model}", "model.head_init=random", "adapter.rank=2",
        "partition=iid", "partition.min_examples=1", "clients.number=2", "clients.per_round=2",
        "privacy=none", "training.precision=fp32", "device=cpu", *overrides,
    )  # fmt: skip


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("text", [FACE, "unheard words", "\u200b", "!?"])
def test_a_text_without_tokens_is_refused_by_its_line(part, text, model, tmp_path):
    settings = settings_of(model, data(tmp_path, **{part: text}))
    with pytest.raises(InputError) as caught:
        build_worker(settings)
    assert str(caught.value).startswith(
        f"{tmp_path / part}.jsonl: line 10: its text gives no tokens"
    )
    assert "\n" not in str(caught.value)


def test_tokens_that_every_text_gets_are_none_of_its_own(tmp_path):
    from transformers import BertTokenizerFast

    save_model(tmp_path / "model", add_pooling_layer=False)
    for file in (tmp_path / "model").glob("tokenizer*"):
        file.unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "te", "tr", "va"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast.from_pretrained(str(tmp_path)).save_pretrained(tmp_path / "model")
    build_worker(settings_of(tmp_path / "model", data(tmp_path, train=FACE)))  # [CLS] [UNK] [SEP]
    with pytest.raises(InputError, match="line 10: its text gives no tokens"):
        build_worker(settings_of(tmp_path / "model", data(tmp_path, train="\u200b")))
    with pytest.raises(InputError, match=r"model\.max_length: 2 .* above the 2 tokens added"):
        build_worker(settings_of(tmp_path / "model", data(tmp_path), "model.max_length=2"))


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_text_above_the_positions_is_refused_by_its_line(part, model, tmp_path):
    folder = data(tmp_path, **{part: LONG})
    with pytest.raises(InputError) as caught:
        build_worker(settings_of(model, folder, "model.max_length=2000"))
    assert str(caught.value) == (
        f"{tmp_path / part}.jsonl: line 10: its text gives 40 tokens after truncation, "
        f"{str(model)!r} takes 32; set model.max_length to 32 at most"
    )
    worker = build_worker(settings_of(model, folder, "model.max_length=32"))
    assert int(worker.tokens.lengths.max()) == 32


def test_a_client_leaves_its_own_rows_out_and_tells_nobody_else(model, tmp_path, capsys):
    (data(tmp_path, train=FACE) / "validation.jsonl").unlink()
    (tmp_path / "test.jsonl").unlink()
    settings = settings_of(model, tmp_path, "partition=own")
    settings = dataclasses.replace(
        settings, partition=dataclasses.replace(settings.partition, holder=0)
    )
    worker = build_worker(settings)
    assert len(worker.parts[0]) == 9
    assert "1 rows give no tokens" in capsys.readouterr().err


def test_token_types_are_not_given_to_a_model_without_them(tmp_path):
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(
        vocab_size=40, dim=16, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=32
    )
    save_model(tmp_path, DistilBertModel, config)
    save_words(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    names = ["input_ids", "token_type_ids", "attention_mask"]
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_input_names": names}))
    rows = [{"text": "good film", "more": f"bad {WORDS[i]}", "label": i % 2} for i in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    worker = build_worker(
        settings_of(
            tmp_path, tmp_path, "data.text=[text,more]", "adapter.targets=[q_lin]",
            "data.validation=0.5",
        )
    )  # fmt: skip
    assert set(worker.tokens.columns) == {"input_ids"}


def test_texts_of_labels_need_tokens_too(model, tmp_path):
    settings = settings_of(
        model, data(tmp_path), "model.head_init=texts", "+data.label_texts=[[good],[unheard]]"
    )
    with pytest.raises(InputError, match=re.escape("data.label_texts: 'unheard' gives no tokens")):
        build_worker(settings)
