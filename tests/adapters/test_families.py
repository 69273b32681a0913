"""Any linear layer of BERT, RoBERTa, DistilBERT, Llama and GPT-2, by names and patterns."""

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    RobertaConfig,
    RobertaModel,
)  # fmt: skip

from fedsvd.adapters import LoraXS, Olora, lora
from fedsvd.adapters.adapted import merged_weight, set_weight
from fedsvd.adapters.blocks import find_blocks
from fedsvd.adapters.targets import find_layers
from fedsvd.errors import InputError
from fedsvd.models.classifier import Classifier
from fedsvd.models.fixed_heads import fixed_head
from fedsvd.privacy.dpsgd import attach_hooks
from fedsvd.settings import AdapterSettings

FAMILIES = {
    "bert": (BertModel, BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=32), ("query", "value")),
    "roberta": (RobertaModel, RobertaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=32), ("query", "value")),
    "distilbert": (DistilBertModel, DistilBertConfig(
        vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=32),
        ("q_lin", "v_lin")),
    "llama": (LlamaModel, LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=24, max_position_embeddings=32),
        ("q_proj", "v_proj")),
    "gpt2": (GPT2Model, GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32), ("c_attn",)),
}  # fmt: skip


def make(family):
    cls, config, _ = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        more = {"add_pooling_layer": False} if family in ("bert", "roberta") else {}
        return cls(config, **more).eval().requires_grad_(False)


def batch():
    g = torch.Generator().manual_seed(0)
    mask = (torch.arange(7)[None] < torch.tensor([7, 3, 5, 6])[:, None]).long()
    return {"input_ids": torch.randint(2, 50, (4, 7), generator=g) * mask, "attention_mask": mask}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapter", [Olora(), LoraXS(std=0.1)], ids=["olora", "lora_xs"])
def test_query_and_value_by_default_with_exact_gradients_and_merge(family, adapter):
    backbone, settings = make(family), AdapterSettings("lora", rank=3)
    attached = lora.attach(backbone, settings, 0, ("A", "B"), adapter=adapter)
    ends = {name.rsplit(".", 1)[-1] for name in attached.layers}
    assert ends == set(FAMILIES[family][2])
    assert len(attached.layers) == 2 * len(ends)
    head = fixed_head("etf", 16, 3, 0, torch.device("cpu"))
    pooling = "last" if family in ("llama", "gpt2") else "mean"
    model = Classifier(
        attached, head, pooling=pooling, normalize=True, scale=3.0, precision="fp32",
        head_trains=False,
    ).double()  # fmt: skip
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.trainable().values():
            p.add_(0.1 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    inputs, labels, trainable = batch(), torch.tensor([0, 1, 2, 0]), model.trainable()
    losses = torch.nn.functional.cross_entropy(model(inputs), labels, reduction="none")
    rows = [torch.autograd.grad(x, list(trainable.values()), retain_graph=True) for x in losses]
    hooks = attach_hooks(model)
    model.set_dropout(False)
    torch.nn.functional.cross_entropy(model(inputs), labels, reduction="sum").backward()
    for i, p in enumerate(trainable.values()):
        expected = torch.stack([row[i] for row in rows])
        torch.testing.assert_close(p.grad_sample, expected, rtol=1e-8, atol=1e-10)
    hooks.cleanup()
    plain = make(family).double()
    for name, module in model.layers.items():
        set_weight(plain.get_submodule(name), merged_weight(module))
    with torch.no_grad():
        ours, theirs = (m(**inputs).last_hidden_state for m in (model.backbone, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def layers(family, *targets, ranks=None, rank=8, upper=None):
    settings = AdapterSettings("lora", rank=rank, targets=targets, ranks=ranks, layers=upper)
    return find_layers(make(family), settings)


def test_patterns_and_ranks():
    assert len(layers("bert", "all")) == 12
    assert list(layers("bert", "encoder.layer.1.*.query", "output.dense")) == [
        "encoder.layer.0.attention.output.dense", "encoder.layer.0.output.dense",
        "encoder.layer.1.attention.self.query", "encoder.layer.1.attention.output.dense",
        "encoder.layer.1.output.dense",
    ]  # fmt: skip
    found = layers("bert", "query", "value", ranks={"encoder.layer.0.*": 4, "value": 2})
    assert list(found.values()) == [4, 2, 8, 2]
    assert set(layers("gpt2", "h.[01].mlp.c_?c")) == {"h.0.mlp.c_fc", "h.1.mlp.c_fc"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_blocks_alone(family):
    whole = layers(family, *FAMILIES[family][2])
    upper = [n for n in whole if ".1." in n]
    assert 2 * len(upper) == len(whole)
    assert list(layers(family, *FAMILIES[family][2], upper="upper_third")) == upper
    assert list(layers(family, "all", upper="1")) == [
        n for n in layers(family, "all") if ".1." in n
    ]
    assert layers(family, "all", upper="2") == layers(family, "all")


@pytest.mark.parametrize(("blocks", "adapted"), [(1, 1), (2, 1), (3, 1), (4, 2), (6, 2), (24, 8)])
def test_a_third_is_rounded_up(blocks, adapted):
    model = stack("layers", *(["query"] for _ in range(blocks)))
    found = find_layers(model, AdapterSettings("lora", rank=2, layers="upper_third",
                                               targets=("query",)))  # fmt: skip
    assert list(found) == [f"layers.{i}.query" for i in range(blocks - adapted, blocks)]


def stack(path, *blocks):
    """A model with a list of blocks, each a name or names of its linear layers."""
    modules = [nn.ModuleDict({n: nn.Linear(4, 4) for n in names}) for names in blocks]
    return nn.ModuleDict({path: nn.ModuleList(modules)})


def test_blocks_are_the_longest_outermost_list():
    experts = stack("layers", ["query"], ["query"])
    for block in experts["layers"]:
        block["experts"] = nn.ModuleList([nn.Linear(4, 4) for _ in range(5)])
    names = ["layers.1.query", "layers.0.experts.3"]
    found = find_blocks(experts, names)
    assert (found.path, [found.number(n) for n in names]) == ("layers", [1, 0])
    both = nn.ModuleDict(
        {"encoder": stack("layers", ["v"], ["v"]), "decoder": stack("layers", ["v"], ["v"])}
    )
    assert find_blocks(both, ["encoder.layers.0.v", "decoder.layers.0.v"]).path == "decoder.layers"
    found = find_blocks(both, ["encoder.layers.0.v"])
    assert (found.path, found.number("decoder.layers.0.v")) == ("encoder.layers", None)
    assert find_blocks(nn.ModuleDict({"v": nn.Linear(4, 4)}), ["v"]) is None


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"upper": "3"}, "adapter.layers: 3 is not allowed; it must be at most 2, the blocks in "
                         "encoder.layer"),
        ({"upper": "1", "targets": ["encoder.layer.0.*"]}, "adapter.layers: no layer of "
                         "adapter.targets is in the last 1 of 2 blocks in encoder.layer"),
        ({"upper": "1", "ranks": {"encoder.layer.0.*": 2}}, "adapter.ranks: 'encoder.layer.0.*'"),
    ],
)  # fmt: skip
def test_blocks_that_there_are_not_are_refused(given, sentence):
    targets = given.pop("targets", ["query"])
    with pytest.raises(InputError) as found:
        layers("bert", *targets, **given)
    assert sentence in str(found.value)
    with pytest.raises(InputError, match="needs a model whose targeted layers are in a list"):
        find_layers(
            nn.ModuleDict({"v": nn.Linear(4, 4)}),
            AdapterSettings("lora", rank=2, layers="1", targets=("v",)),
        )


@pytest.mark.parametrize(
    ("family", "targets", "ranks", "rank", "sentence"),
    [
        (
            "bert",
            ["q_proj"],
            None,
            8,
            "no linear layer of the model is called 'q_proj'; it has dense",
        ),
        ("bert", ["*.nothing"], None, 8, "no linear layer of the model is called '*.nothing'"),
        ("llama", ["query"], {"up_proj": 2}, 8, "adapter.ranks: 'up_proj' is not allowed"),
        (
            "llama",
            ["query"],
            {"q_proj": 17},
            8,
            "adapter.rank: 17 is not allowed; it must be at most",
        ),
        ("bert", ["query"], None, 17, "at most 16 (encoder.layer.0.attention.self.query)"),
    ],
)
def test_what_does_not_fit_is_refused(family, targets, ranks, rank, sentence):
    with pytest.raises(InputError) as found:
        layers(family, *targets, ranks=ranks, rank=rank)
    assert sentence in str(found.value)
