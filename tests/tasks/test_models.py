"""Weights of other formats under Transformers' names."""

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from fedsvd.tasks import bert_tiny, minilm_l3


def test_variables_of_berts_first_code() -> None:
    g = np.random.default_rng(0)
    config = {
        "vocab_size": 11, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 6, "max_position_embeddings": 5, "type_vocab_size": 2,
    }  # fmt: skip
    layer = "bert/encoder/layer_0"
    shapes: dict[str, tuple[int, ...]] = {
        "bert/embeddings/word_embeddings": (11, 4),
        "bert/embeddings/position_embeddings": (5, 4),
        "bert/embeddings/token_type_embeddings": (2, 4),
        "bert/pooler/dense/kernel": (4, 4), "bert/pooler/dense/bias": (4,),
        "dense/kernel": (4, 1), "dense/bias": (1,), "global_step": (),
        f"{layer}/intermediate/dense/kernel": (4, 6), f"{layer}/intermediate/dense/bias": (6,),
        f"{layer}/output/dense/kernel": (6, 4), f"{layer}/output/dense/bias": (4,),
    }  # fmt: skip
    for part in ("self/query", "self/key", "self/value", "output/dense"):
        shapes[f"{layer}/attention/{part}/kernel"] = (4, 4)
        shapes[f"{layer}/attention/{part}/bias"] = (4,)
    for place in ("bert/embeddings", f"{layer}/attention/output", f"{layer}/output"):
        shapes[f"{place}/LayerNorm/gamma"] = shapes[f"{place}/LayerNorm/beta"] = (4,)
    variables = {n: g.standard_normal(s).astype("float32") for n, s in shapes.items()}
    model = bert_tiny.encoder(config, variables)
    state = model.state_dict()
    assert model.config.hidden_act == "gelu_pytorch_tanh"
    expected = variables[f"{layer}/intermediate/dense/kernel"].T
    found = state["encoder.layer.0.intermediate.dense.weight"]
    torch.testing.assert_close(found, torch.from_numpy(expected.copy()), rtol=0, atol=0)
    found = state["encoder.layer.0.output.LayerNorm.weight"]
    expected = variables[f"{layer}/output/LayerNorm/gamma"]
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=0)


def test_products_of_onnx_are_called_after_their_layer() -> None:
    g = np.random.default_rng(0)
    kernel, bias = g.standard_normal((2, 3)), g.standard_normal(3)
    path = "/model/model.0/auto_model/encoder/layer.0/intermediate/dense"
    name = f"{minilm_l3.ROOT}encoder.layer.0.intermediate.dense.bias"
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "held"], [f"{path}/MatMul_output_0"]),
            helper.make_node("MatMul", ["x", "y"], ["free"]),
        ],
        "g", [], [],
        [numpy_helper.from_array(kernel, "held"), numpy_helper.from_array(bias, name)],
    )  # fmt: skip
    found = minilm_l3.weights(onnx.helper.make_model(graph))
    assert set(found) == {f"encoder.layer.0.intermediate.dense.{k}" for k in ("weight", "bias")}
    np.testing.assert_array_equal(found["encoder.layer.0.intermediate.dense.weight"], kernel.T)
