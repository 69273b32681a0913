"""Targets that no gradient reaches, and weights that are no numbers, before any work."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AlbertConfig, AlbertModel, AutoTokenizer, MPNetConfig, MPNetModel

import fedsvd
from fedsvd.adapters import lora
from fedsvd.adapters.targets import find_layers
from fedsvd.client.probe import some_tokens, unreached
from fedsvd.client.worker import build_worker
from fedsvd.errors import InputError
from fedsvd.experiment import prepare
from fedsvd.lowrank import AdapterState
from fedsvd.models.backbone import load_backbone
from fedsvd.models.classifier import Classifier
from fedsvd.models.heads import zero_head
from fedsvd.objectives.build import objective_of
from fedsvd.settings import ModelSettings
from fedsvd.strategies.build import build_strategy
from tests.conftest import compose_settings
from tests.tiny import make_inputs, run

SIZES = {
    "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 40,
}  # fmt: skip
MODELS = {
    "mpnet": (lambda: MPNetModel(MPNetConfig(**SIZES)), "pooler.dense"),
    "albert": (lambda: AlbertModel(AlbertConfig(**SIZES, embedding_size=8)), "pooler"),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    made = [*make_inputs(folder), "model.max_length=16", "rounds=2"]
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "model"))
    for name, (make, _) in MODELS.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            make().save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder, made


@pytest.mark.parametrize("unit", ["none", "dp_sgd", "client_level"])
@pytest.mark.parametrize("name", list(MODELS))
def test_an_unused_pooler_among_all_layers_is_left_out_with_a_line(
    name, unit, inputs, tmp_path, capsys
):
    folder, made = inputs
    more = [f"model.name={folder / name}", "adapter.targets=all", f"privacy={unit}"]
    summary = run(tmp_path / "x", made, *more)
    assert summary["failures"] == 0
    pooler = MODELS[name][1]
    told = capsys.readouterr().err
    assert f"warning: adapter.targets: no adapter on {pooler}, which gets no gradient" in told
    config = json.loads((tmp_path / "x" / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"]
    assert not any("pool" in layer for layer in config["target_modules"])
    assert len(fedsvd.load(tmp_path / "x").predict(["good film", "bad"])) == 2


@pytest.mark.parametrize("unit", ["none", "dp_sgd", "client_level"])
@pytest.mark.parametrize("name", list(MODELS))
def test_an_unused_pooler_that_is_asked_for_by_name_is_refused(name, unit, inputs):
    folder, made = inputs
    pooler = MODELS[name][1]
    value = "v" if name == "mpnet" else "value"  # MPNet calls it so
    for targets in (f"[{pooler}]", f"[{value},{pooler}]", "['po*']"):
        settings = compose_settings(
            *made, f"model.name={folder / name}", f"adapter.targets={targets}", f"privacy={unit}"
        )
        with pytest.raises(InputError, match=f"fits only {pooler}, which gets no gradient"):
            prepare(settings, build_strategy(settings.strategy))


def test_a_model_in_which_all_is_used_keeps_every_layer_and_its_bits(inputs):
    _, made = inputs
    settings = compose_settings(*made, "adapter.targets=all")
    before = torch.get_rng_state()
    worker = build_worker(settings)
    assert torch.equal(before, torch.get_rng_state())
    assert worker.left_out == []
    backbone = load_backbone(settings.model)
    assert list(worker.model.layers) == list(find_layers(backbone, settings.adapter))
    kept = dict(worker.model.backbone.named_parameters())
    for name, p in backbone.named_parameters():
        found = [v for k, v in kept.items() if k.replace(".base_layer", "").endswith(name)]
        assert any(torch.equal(p, v) for v in found), name


class Odd(nn.Module):
    """A backbone with one layer of every kind that a probe must tell apart."""

    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {"hidden_size": 4, "model_type": "odd"})()
        self.embed = nn.Embedding(20, 4)
        for name in ("used", "twice", "never", "aside", "read", "times_zero", "detached"):
            setattr(self, name, nn.Linear(4, 4))
        self.requires_grad_(False)

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, attention_mask):
        x = self.twice(self.twice(torch.tanh(self.used(self.embed(input_ids)))))
        x = x + nn.functional.linear(x, self.read.weight)  # the module itself is not called
        x = x + 0 * self.times_zero(x) + self.detached(x).detach()
        aside = self.aside(x)
        return type("Out", (), {"last_hidden_state": x, "pooler_output": aside})()


def classifier(backbone):
    attached = lora.Attached(backbone, {}, AdapterState({}))
    return Classifier(
        attached, zero_head(4, 2, False, torch.device("cpu")), pooling="mean", normalize=True,
        scale=1.0, precision="fp32", head_trains=True,
    )  # fmt: skip


def tokens_of(backbone, inputs):
    like = build_worker(compose_settings(*inputs[1])).tokens
    return some_tokens("tiny", backbone, like, 9, 2, objective_of("classification"))


def test_each_kind_of_layer_that_gets_no_gradient_is_found(inputs):
    """Also with a head of zeros, through which no gradient of a loss would come."""
    backbone = Odd()
    names = [n for n, m in backbone.named_modules() if isinstance(m, nn.Linear)]
    found = unreached(classifier(backbone), names, tokens_of(backbone, inputs), "odd")
    assert found == ["never", "aside", "read", "times_zero", "detached"]
    assert not any(m._forward_hooks for m in backbone.modules())


def test_a_model_that_makes_no_numbers_or_fails_is_refused(inputs):
    backbone = Odd()
    tokens = tokens_of(backbone, inputs)
    with torch.no_grad():
        backbone.twice.weight.fill_(3e38)
    with pytest.raises(InputError, match="'odd' makes numbers that are not finite"):
        unreached(classifier(backbone), ["used"], tokens, "odd")
    backbone.forward = lambda **inputs: 1 / 0
    with pytest.raises(InputError, match="'odd' fails on random token ids: ZeroDivisionError"):
        unreached(classifier(backbone), ["used"], tokens, "odd")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("unit", ["none", "dp_sgd", "client_level"])
def test_weights_that_are_no_numbers_are_refused_by_name(value, unit, inputs, tmp_path):
    folder, made = inputs
    source, broken = folder / "model", tmp_path / "broken"
    broken.mkdir()
    for file in source.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    name = next(n for n in weights if n.endswith("layer.1.output.dense.weight"))
    weights[name][0, :2] = value
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"holds 2 of 512 numbers in {re.escape(name)} that are"):
        load_backbone(ModelSettings(name=str(broken)))
    settings = compose_settings(*made, f"model.name={broken}", f"privacy={unit}")
    with pytest.raises(InputError, match="not finite"):
        prepare(settings, build_strategy(settings.strategy))
