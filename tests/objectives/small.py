"""Small random decoders with a tokeniser of their own, and tasks for them."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

WORDS = ["red", "blue", "green", "one", "two", "three", "cat", "dog", "house", "tree", "is", "a"]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
VOCABULARY = 320
SIZE = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 24, "max_position_embeddings": 128,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZE, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**SIZE, tie_word_embeddings=False),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=3, n_head=2, n_positions=128, bos_token_id=1,
        eos_token_id=2, pad_token_id=0,
    ),
    "gemma": lambda: GemmaConfig(**SIZE, head_dim=8),
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('only user and assistant roles') }}{% endif %}"
    "{{ m['role'] + ' : ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)


def tokenizer(template: str | None = TEMPLATE, side: str = "right"):
    """Return a byte-level tokeniser that has every word of these whole, with a chat template."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    found.train_from_iterator([text for w in WORDS for text in (w, f" {w}")] * 9, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=found, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", chat_template=template, padding_side=side,
    )  # fmt: skip


def make_model(folder: Path, kind: str = "llama", template: str | None = TEMPLATE, side="right"):
    """Write a model with random weights, the same at every call, and its tokeniser."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(CONFIGS[kind]())
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(0, 0.3) if p.ndim > 1 else p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(folder)
    tokenizer(template, side).save_pretrained(folder)
    return folder


def rows(number: int = 60):
    """Return prompts and completions of unequal lengths, no two alike."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for i in range(number):
        drawn = torch.randint(len(WORDS), (4 + i % 7,), generator=generator).tolist()
        words = [WORDS[d] for d in drawn]
        cut = 2 + i % 2
        said = " ".join(words[cut:])
        found.append({"prompt": " ".join(words[:cut]), "completion": f" {said}"})
    return found


def write(path: Path, found) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in found) + "\n")
    return path


def overrides(folder: Path, kind: str = "llama", *more: str) -> list[str]:
    """Write model and rows into `folder` and return the overrides of a short run on them."""
    make_model(folder / kind, kind)
    write(folder / "rows.jsonl", rows())
    return [
        "task=causal", "data=folder", f"data.path={folder / 'rows.jsonl'}",
        "data.text=[prompt,completion]", "data.public_size=50", "data.validation=0.2",
        "model=custom", f"model.name={folder / kind}", "adapter.rank=2", "rounds=2",
        "training.batch_size=4", "training.local_steps=1", "training.precision=fp32",
        "privacy.accountant=rdp", "partition=iid", "partition.min_examples=1", "engine.threads=1",
        "clients.number=3", "clients.per_round=2", *more,
    ]  # fmt: skip
