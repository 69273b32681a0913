"""The tail of a block as one operation, beside its modules and float64."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    ElectraConfig,
    ElectraModel,
    RobertaConfig,
    RobertaModel,
)

from fedsvd.models.tail import Tail, parts_of

SIZES: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96,
    "vocab_size": 99,
}  # fmt: skip


def block_of(act: str = "gelu", kind: str = "bert") -> nn.Module:
    torch.manual_seed(0)
    if kind == "roberta":
        model: Any = RobertaModel(RobertaConfig(hidden_act=act, **SIZES), add_pooling_layer=False)
    else:
        model = BertModel(BertConfig(hidden_act=act, **SIZES), add_pooling_layer=False)
    for p in model.parameters():  # norms and biases that do something
        p.data.add_(0.1 * torch.randn_like(p))
    block: nn.Module = model.eval().requires_grad_(False).encoder.layer[1]
    return block


def run(block: nn.Module, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return the block's output after attention, and the gradients of its two inputs."""
    known = block.to(dtype)
    drawn = torch.Generator().manual_seed(1)
    context, hidden, along = (
        torch.randn(3, 7, 48, generator=drawn).to(dtype).requires_grad_(i < 2) for i in range(3)
    )
    out = known.feed_forward_chunk(known.attention.output(context, hidden))  # type: ignore[operator,union-attr]
    loss = (out * along[:, : out.shape[1]]).sum()
    return [out.detach(), *torch.autograd.grad(loss, (context, hidden))]


def tail_of(block: nn.Module, first: bool = False) -> Tail:
    parts = parts_of(block)
    assert parts is not None
    assert parts.plain
    return Tail(block, parts, first)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("act", ["gelu", "gelu_pytorch_tanh"])
def test_value_and_gradients_are_those_of_the_modules(act: str, kind: str) -> None:
    block = block_of(act, kind)
    exact, before = run(block, torch.float64), run(block)
    tail = tail_of(block)
    found = run(block)
    for value, old, true in zip(found, before, exact, strict=True):
        far, usual = ((v - true).norm() / true.norm() for v in (value, old))
        assert far < 1.5 * usual + 1e-7
        assert not torch.equal(value.double(), true)  # it was not computed in float64
    if act == "gelu":
        assert all(torch.equal(f, b) for f, b in zip(found, before, strict=True))
    tail.remove()
    assert all(torch.equal(f, b) for f, b in zip(run(block), before, strict=True))


def test_it_is_one_operation_of_the_graph_and_only_where_it_may_be() -> None:
    block = block_of()
    tail_of(block)

    def name() -> str:
        x = torch.randn(2, 3, 48, requires_grad=True)
        return type(block.feed_forward_chunk(block.attention.output(x, x)).grad_fn).__name__  # type: ignore[operator,union-attr]

    assert name() == "_AfterAttentionBackward"
    block.output.dropout.p = 0.1  # type: ignore[union-attr]
    assert name() == "_AfterAttentionBackward"
    block.train()
    assert name() == "NativeLayerNormBackward0"
    block.eval()
    handle = block.intermediate.dense.register_forward_hook(lambda *_: None)  # type: ignore[union-attr]
    assert name() == "NativeLayerNormBackward0"
    handle.remove()
    with torch.autocast("cpu", torch.bfloat16):
        assert name() != "_AfterAttentionBackward"
    block.output.dense.weight.requires_grad_(True)  # type: ignore[union-attr]
    assert name() == "NativeLayerNormBackward0"


@pytest.mark.parametrize("autocast", [False, True])
def test_the_first_token_alone(autocast: bool) -> None:
    block = block_of("gelu_pytorch_tanh")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        whole = run(block)
        tail_of(block, first=True)
        found = run(block)
    assert found[0].shape == (3, 1, 48)
    bound = 2e-2 if autocast else 1e-5
    assert (found[0] - whole[0][:, :1]).norm() < bound * found[0].norm()
    for value in found[1:]:
        assert value[:, 1:].eq(0).all()
        assert value[:, 0].ne(0).any()


def test_blocks_that_are_not_known_have_none() -> None:
    assert parts_of(block_of("relu")) is None
    assert parts_of(ElectraModel(ElectraConfig(**SIZES)).encoder.layer[0]) is None
    assert parts_of(nn.Linear(2, 2)) is None
    trained = block_of()
    trained.output.dense.weight.requires_grad_(True)  # type: ignore[union-attr]
    parts = parts_of(trained)
    assert parts is not None
    assert not parts.plain
