"""What is wrong with a model folder is refused by name; what does no harm is not."""

import json
import re

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MPNetConfig,
    MPNetModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from fedsvd.errors import InputError
from fedsvd.models.backbone import load_backbone, load_tokenizer
from fedsvd.models.digest import weights_digest
from fedsvd.models.usable import fit_tokenizer
from fedsvd.settings import ModelSettings
from tests.models.saved import SIZES, change_config, change_weights, save_model, save_words

T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}


def prefixed(prefix):
    return lambda w: {prefix + k: t for k, t in w.items()}


def some_prefixed(w):
    return {("module." if "layer.1" in k else "") + k: t for k, t in w.items()}


def without(part):
    return lambda w: {k: t for k, t in w.items() if part not in k}


def with_more(name):
    return lambda w: {**w, name: torch.zeros(2)}


def halved(w):
    name = "encoder.layer.1.output.dense.weight"
    return {**w, name: w[name][:, :5].contiguous()}


WEIGHTS = [
    (prefixed("_orig_mod."), "their names begin with '_orig_mod.': save the weights again without"),
    (prefixed("module."), "their names begin with 'module.': save"),
    (prefixed("module._orig_mod."), "their names begin with 'module._orig_mod.': save"),
    (prefixed("_orig_mod.bert."), "their names begin with '_orig_mod.': save"),
    (prefixed("model."), "their names begin with 'model.': save"),
    (prefixed("student."), "embeddings.LayerNorm.bias"),
    (some_prefixed, "weights that are missing: encoder.layer.1.attention.output.LayerNorm.bias"),
    (without("layer.1."), "encoder.layer.1.attention.output.LayerNorm.weight"),
    (without("word_embeddings"), "weights that are missing: embeddings.word_embeddings.weight"),
    (with_more("encoder.layer.7.output.dense.bias"), "no place for: encoder.layer.7.output.dense"),
    (with_more("encoder.layer.0.attention.self.query.lora_A"), "no place for: encoder.layer.0"),
    (with_more("_orig_mod.embeddings.x"), "no place for: _orig_mod.embeddings.x"),
    (halved, "other sizes: encoder.layer.1.output.dense.weight is (16, 5) in the file and (16, 32)"),
]  # fmt: skip
CONFIGS = [
    ({"hidden_size": 32}, "and (32,) by config.json, "),
    ({"num_hidden_layers": 3}, "encoder.layer.2.attention.output.LayerNorm.bias"),
    ({"num_hidden_layers": 1}, "no place for: encoder.layer.1.attention.output.LayerNorm.bias"),
    ({"vocab_size": 99}, "embeddings.word_embeddings.weight is (40, 16) in the file and (99, 16)"),
    ({"num_attention_heads": 3}, "cannot be loaded"),
    ({"hidden_size": "wide"}, "cannot be loaded"),
    ({"hidden_act": "unknown"}, "cannot be loaded"),
    ({"model_type": "brt"}, "cannot be loaded"),
    ({"model_type": 3}, "cannot be loaded"),
    ({"model_type": "distilbert"}, "weights"),
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "cannot be"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "cannot be loaded"),
    ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "cannot be loaded"),
    ({"quantization_config": {"quant_method": "unheard"}}, "cannot be loaded"),
]


def refused(folder, message, loader=load_backbone):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        loader(ModelSettings(name=str(folder)))
    told = str(caught.value)
    assert told.startswith("model.name: ")
    assert "\n" not in told
    assert len(told) < 900


@pytest.mark.parametrize(
    ("change", "message"), WEIGHTS, ids=lambda v: getattr(v, "__name__", str(v))[:40]
)
def test_weights_that_are_not_the_models(change, message, tmp_path):
    save_model(tmp_path, add_pooling_layer=False)
    change_weights(tmp_path, change)
    refused(tmp_path, message)


@pytest.mark.parametrize(
    ("change", "message"), CONFIGS, ids=lambda v: getattr(v, "__name__", str(v))[:60]
)
def test_a_configuration_that_is_not_the_weights(change, message, tmp_path):
    save_model(tmp_path, add_pooling_layer=False)
    change_config(tmp_path, **change)
    refused(tmp_path, message)


def test_many_names_are_counted(tmp_path):
    save_model(tmp_path, add_pooling_layer=False)
    change_weights(tmp_path, without("encoder."))
    refused(tmp_path, " and 28 more")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"bert"', "null", "\x00"])
def test_a_configuration_that_is_none(text, tmp_path):
    save_model(tmp_path)
    (tmp_path / "config.json").write_text(text)
    refused(tmp_path, "cannot be loaded: its config.json ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", ""),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "Unheard"}}'),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
    ],
)
def test_a_damaged_tokeniser(name, text, tmp_path):
    save_model(tmp_path)
    (tmp_path / name).write_text(text)
    refused(tmp_path, "cannot be loaded: its tokeniser ", load_tokenizer)


def test_a_panic_of_the_tokenisers_is_a_wrong_input(tmp_path, monkeypatch):
    class PanicException(BaseException):  # as pyo3 calls it: no Exception
        pass

    def panics(*args, **kwargs):
        raise PanicException("called `Option::unwrap()` on a `None` value")

    save_model(tmp_path)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", panics)
    refused(tmp_path, "its tokeniser called `Option::unwrap()`", load_tokenizer)
    for error in (KeyboardInterrupt, SystemExit):
        monkeypatch.setattr(
            "transformers.AutoTokenizer.from_pretrained",
            lambda *a, e=error, **k: (_ for _ in ()).throw(e()),
        )
        with pytest.raises(error):
            load_tokenizer(ModelSettings(name=str(tmp_path)))


def test_a_file_and_a_missing_shard(tmp_path):
    folder = save_model(tmp_path / "model")
    refused(folder / "model.safetensors", "is a file; give the folder that holds it")
    AutoModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="4KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    load_backbone(ModelSettings(name=str(folder)))
    shards = sorted(folder.glob("model-*.safetensors"))
    shards[1].unlink()
    refused(folder, f"lacks {shards[1].name}, which model.safetensors.index.json names (1 of")
    (folder / "model.safetensors.index.json").write_text("{}")
    refused(folder, "is no list of weight files")


HEADS = [
    (BertForMaskedLM, BertConfig(**SIZES), {}),
    (BertForSequenceClassification, BertConfig(**SIZES), {}),
    (GPT2LMHeadModel, GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2), {}),
    (MPNetModel, MPNetConfig(**SIZES), {"add_pooling_layer": False}),
]


@pytest.mark.parametrize(
    ("cls", "config", "more"), HEADS, ids=lambda v: getattr(v, "__name__", str(v))[:40]
)
def test_a_replaced_head_and_an_unused_pooler_are_no_faults(cls, config, more, tmp_path):
    save_model(tmp_path, cls, config, **more)
    found = [load_backbone(ModelSettings(name=str(tmp_path))) for _ in range(2)]
    values = [torch.cat([t.flatten() for t in m.state_dict().values()]) for m in found]
    assert torch.equal(*values)  # also of a pooler that is not in the file
    assert weights_digest(found[0]) == weights_digest(found[1])
    ids = torch.tensor([[5, 6, 7]])
    expected = cls.from_pretrained(tmp_path).base_model.eval()(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found[0](input_ids=ids).last_hidden_state, expected)


@pytest.mark.parametrize("cls", [T5ForConditionalGeneration, T5EncoderModel])
def test_of_t5_it_is_the_encoder(cls, tmp_path):
    save_model(tmp_path / "t5", cls, T5Config(**T5, pad_token_id=0, decoder_start_token_id=0))
    backbone = load_backbone(ModelSettings(name=str(tmp_path / "t5")))
    names = {n for n, m in backbone.named_modules() if n.endswith("SelfAttention.q")}
    assert names == {f"encoder.block.{i}.layer.0.SelfAttention.q" for i in range(2)}
    ids = torch.tensor([[5, 6, 7]])
    whole = cls.from_pretrained(tmp_path / "t5").eval()
    expected = whole.get_encoder()(input_ids=ids).last_hidden_state
    torch.testing.assert_close(backbone(input_ids=ids).last_hidden_state, expected)
    backbone.save_pretrained(str(tmp_path / "again"))  # merged models are saved
    again = load_backbone(ModelSettings(name=str(tmp_path / "again")))
    assert weights_digest(again) == weights_digest(backbone)


def test_models_that_take_no_texts(tmp_path):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=8, patch_size=4,
    )  # fmt: skip
    save_model(tmp_path, ViTModel, config)
    refused(tmp_path, "cannot be used as a backbone of texts: it raises ")


def test_weights_that_are_not_numbers(tmp_path):
    save_model(tmp_path, add_pooling_layer=False)
    change_weights(tmp_path, lambda w: {k: t / 0 for k, t in w.items()})
    refused(tmp_path, "that are not finite")


def test_what_pads(tmp_path):
    save_model(tmp_path)
    save_words(tmp_path, pad=None)
    refused(tmp_path, "has neither a padding token nor an end token", load_tokenizer)
    save_words(tmp_path, pad=None, eos_token="<end>")
    load_tokenizer(ModelSettings(name=str(tmp_path)))


def test_ids_above_the_embeddings(tmp_path):
    save_model(tmp_path)
    save_words(tmp_path, words=[f"w{i}" for i in range(60)])
    settings = ModelSettings(name=str(tmp_path))
    with pytest.raises(
        InputError, match=r"ids up to 60 \('w59'\), its model has embeddings for 40"
    ):
        fit_tokenizer(settings.name, load_backbone(settings), load_tokenizer(settings))


def test_the_dropout_of_every_family_is_the_models(tmp_path):
    save_model(tmp_path, T5EncoderModel, T5Config(**T5, dropout_rate=0.3))
    model = load_backbone(ModelSettings(name=str(tmp_path), dropout=0.25))
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}
    assert json.loads((tmp_path / "config.json").read_text())["dropout_rate"] == 0.3
