"""bert_tiny: the encoder of BLEURT-Tiny (2 layers of 128), from a TensorFlow checkpoint."""

import io
import json
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsvd.errors import RunError
from fedsvd.tasks.archives import BIGBENCH, get
from fedsvd.tasks.bigbench import read_files
from fedsvd.tasks.bundle import read_bundle
from fedsvd.tasks.write import replace, save

PACKED = "bleurt/bleurt-b610120347ef22b494b6d69b4316e303f5932516.zip"
FOLDER = f"{Path(PACKED).stem}/bleurt/test_checkpoint"
# What BLEURT's own tests expect of these pairs: bleurt/score_test.py of the archive.
REFERENCE = "An apple a day keeps the doctor away."
KNOWN = {REFERENCE: 0.910811, "An apple a day keeps doctors away.": 0.771989}
CLOSE = 1e-5


def convert(archives: Path, folder: Path) -> Path:
    """Write FOLDER/bert_tiny in Transformers' form and return it.

    Its scores of two pairs, through the pooler and the last layer that are left out, are compared
    with the known ones first; RunError if they differ.
    """
    from transformers import BertTokenizer

    packed = read_files(get(BIGBENCH, archives), [PACKED])[PACKED]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        raw = Path(scratch) / "raw"
        with zipfile.ZipFile(io.BytesIO(packed)) as file:
            for name in ("bert_config.json", "vocab.txt", "variables/variables.index",
                         "variables/variables.data-00000-of-00001"):  # fmt: skip
                (raw / name).parent.mkdir(parents=True, exist_ok=True)
                (raw / name).write_bytes(file.read(f"{FOLDER}/{name}"))
        given = json.loads((raw / "bert_config.json").read_text())
        variables = read_bundle(
            raw / "variables/variables.index", raw / "variables/variables.data-00000-of-00001"
        )
        new = Path(scratch) / "bert_tiny"
        model = encoder(given, variables)
        tokenizer = BertTokenizer(str(raw / "vocab.txt"), do_lower_case=True)
        found = scores(model, tokenizer, variables, REFERENCE, list(KNOWN))
        worst = max(abs(a - b) for a, b in zip(found, KNOWN.values(), strict=True))
        if not worst < CLOSE:
            raise RunError(f"bert_tiny: scores {found} differ from the known {[*KNOWN.values()]}")
        save(model, tokenizer, new)
        return replace(new, folder / "bert_tiny")


def vocabulary(archive: Path) -> bytes:
    """Return BERT's uncased vocabulary, one token a line."""
    with zipfile.ZipFile(io.BytesIO(read_files(archive, [PACKED])[PACKED])) as file:
        return file.read(f"{FOLDER}/vocab.txt")


def encoder(given: Mapping[str, Any], variables: Mapping[str, np.ndarray]) -> Any:
    """Return a BertModel without a pooler, with the variables of a checkpoint of BERT's own code."""
    from transformers import BertConfig, BertModel

    # What BERT's first code calls "gelu" is the form with tanh (in one operation).
    config = BertConfig(**{**given, "hidden_act": "gelu_pytorch_tanh"})
    model = BertModel(config, add_pooling_layer=False).eval()
    weights = {_renamed(n): _turned(n, v) for n, v in variables.items() if _encoder(n)}
    model.load_state_dict(weights)
    return model


def _encoder(name: str) -> bool:
    return name.startswith(("bert/embeddings", "bert/encoder"))


def _renamed(name: str) -> str:
    """Return Transformers' name of a variable of BERT's original code."""
    name = name.removeprefix("bert/").replace("layer_", "layer.").replace("/", ".")
    for old, new in ((".kernel", ".weight"), (".gamma", ".weight"), (".beta", ".bias")):
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name + ".weight" if name.endswith("_embeddings") else name


def _turned(name: str, value: np.ndarray) -> torch.Tensor:
    """Return a variable as a tensor; the original keeps matrices as (in, out)."""
    turned = value.T if name.endswith("/kernel") else value
    return torch.from_numpy(np.ascontiguousarray(turned).copy())


@torch.no_grad()
def scores(
    model: torch.nn.Module, tokenizer: Any, variables: Mapping[str, np.ndarray], reference: str,
    candidates: Sequence[str],
) -> list[float]:  # fmt: skip
    """Return BLEURT's score of each candidate: the last layer of the pooled first token."""
    found = []
    weight = {n: torch.from_numpy(v.copy()) for n, v in variables.items() if not _encoder(n)}
    for candidate in candidates:
        inputs = tokenizer(reference, candidate, return_tensors="pt")
        first = model(**inputs).last_hidden_state[:, 0]
        pooled = torch.tanh(
            first @ weight["bert/pooler/dense/kernel"] + weight["bert/pooler/dense/bias"]
        )
        found.append(float(pooled @ weight["dense/kernel"] + weight["dense/bias"]))
    return found
