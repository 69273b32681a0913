"""A whole run on a tiny random BERT and a tiny CSV: real code, hardly any arithmetic."""

import json
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from transformers import BertConfig, BertModel, BertTokenizerFast

from fedsvd.run import config_folder, execute

WORDS = ["good", "bad", "fine", "poor", "film", "plot", "the", "a", "is", "was", "very", "not"]
TIMES = (  # how long a run took, and how it was called
    "command", "seconds", "setup_seconds", "train_seconds", "evaluate_seconds", "seconds_training",
    "seconds_evaluating",
)  # fmt: skip


def make_inputs(folder: Path, width: int = 16) -> list[str]:
    """Write a model and a CSV into `folder` and return the overrides that choose them."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS]))
    tokenizer = BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), vocab=None)
    tokenizer = BertTokenizerFast.from_pretrained(str(folder))
    config = BertConfig(
        vocab_size=len(special) + len(WORDS), hidden_size=width, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    generator = torch.Generator().manual_seed(1)
    lines = ["text,label"]
    for i in range(120):
        drawn = torch.randint(len(WORDS), (6,), generator=generator).tolist()
        lines.append(f"{' '.join(WORDS[d] for d in drawn)} {WORDS[i % 12]},{i % 2}")
    (folder / "data.csv").write_text("\n".join(lines))
    return [
        "data=folder", f"data.path={folder / 'data.csv'}", "data.labels=['0','1']",
        "data.public_size=90", "model=custom", f"model.name={folder / 'model'}", "adapter.rank=2",
        "rounds=4", "training.batch_size=4", "training.local_steps=1", "training.precision=fp32",
        "privacy.accountant=rdp", "partition=iid", "partition.min_examples=1", "engine.threads=1",
        "recorder.evaluate_every=2",
    ]  # fmt: skip


def run(folder: Path, overrides: list[str], *more: str):
    """Run in `folder` and return the summary."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose("config", [*overrides, *more])
    folder.mkdir(parents=True, exist_ok=True)
    return execute(config, folder, [*overrides, *more])


def outcome(folder: Path):
    """Return what must not depend on interruptions."""
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    return (
        summary["state_digest"],
        (folder / "privacy.json").read_text(),
        [{k: v for k, v in line.items() if k not in TIMES} for line in lines],
        {k: v for k, v in summary.items() if k not in TIMES},
    )
