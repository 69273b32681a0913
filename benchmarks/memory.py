"""python -m benchmarks.memory [NAME ...]: what `--plan` says beside what a run's process takes.

Every case is planned and run in processes of their own. The peak is the system's (VmHWM; where there
is none ru_maxrss, which also counts what this process holds). The cases of SmolLM2 read whole
paragraphs as plain texts, so that micro-batches are full and every token counts, as a plan has it;
"rows of squad_qa" has prompts and completions. They need `python -m fedsvd.tasks squad_qa smollm2`.
Without names all cases run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from fedsvd.composing import settings_of
from fedsvd.factors import factors_of
from fedsvd.footprint.outline import sizes
from fedsvd.footprint.plan import beside, moments_of

SHORT = [
    "rounds=1", "training.local_steps=1", "clients.number=2", "clients.per_round=1",
    "privacy.accountant=rdp", "recorder.test=false", "engine.threads=1",
    "partition.min_examples=0",
]  # fmt: skip
QA = [
    "task=causal", "data=squad_qa", "model=smollm2", "data.limit=40", "data.limit_evaluation=10",
    "partition=iid", "training.microbatch_tokens=768", "training.batch_size=8", *SHORT,
]  # fmt: skip
# Prompts hold a paragraph of up to 800 characters: nearly all have more than 96 tokens.
FULL = ["data.text=[prompt]", "model.max_length=96", *QA]
LLAMA = {"vocab_size": 128256, "hidden_act": "silu", "max_position_embeddings": 8192}
SHAPES = {
    "1 billion": {
        **LLAMA, "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 8192, "tie_word_embeddings": True,
    },
    "8 billion": {
        **LLAMA, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "tie_word_embeddings": False,
    },
}  # fmt: skip
CASES = {
    "default": [*SHORT, "data.limit=600", "recorder.evaluate_examples=100"],
    "smollm2": FULL,
    "smollm2, without privacy": [*FULL, "privacy=none"],
    "smollm2, again": [*FULL, "training.gradient_checkpointing=true"],
    "smollm2, bf16": [*FULL, "training.gradient_checkpointing=true", "model.dtype=bfloat16"],
    "rows of squad_qa": QA,
}
RUN = """
import sys
from fedsvd.machine import resident
from fedsvd.run import main

status = main(sys.argv[1:])
print("peak", resident())
sys.exit(status)
"""


def planned(overrides: list[str]) -> float:
    """Return the peak that the plan says, in MiB."""
    command = [sys.executable, "-m", "fedsvd.run", *overrides, "--plan"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = next(x for x in done.stdout.splitlines() if x.startswith("peak"))
    return float(line.split()[1].replace(",", ""))


def measured(overrides: list[str]) -> float:
    """Return the peak of a run's process, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", RUN, *overrides, f"hydra.run.dir={folder}/run"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    return int(done.stdout.splitlines()[-1].split()[1]) / 2**20


def shapes() -> None:
    """Print what Llama's shapes take of a card under `+experiment=llm/instruct`, by arithmetic."""
    import torch
    from safetensors.torch import save_file

    print(f"{'shape':10}{'':26}{'weights':>12}{'beside':>12}  at its most in")
    for name, size in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            given = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **size}
            Path(folder, "config.json").write_text(json.dumps(given))
            save_file({"none": torch.zeros(1)}, f"{folder}/model.safetensors")
            for more in ("model.dtype=bfloat16", "model.quantization=nf4"):
                overrides = [
                    "+experiment=llm/instruct", f"model.name={folder}", "data.path=none",
                    "data.public_size=10000", "model.attention=sdpa", "training.precision=bf16", more,
                ]  # fmt: skip
                settings = settings_of(overrides)
                on_card = moments_of(settings, torch.device("cuda"), alone=False)
                found = {m: sizes(settings, factors_of(settings), m) for m in on_card}
                most = max(found, key=lambda m: beside(found[m], m, settings))
                told = (found[most].weights, beside(found[most], most, settings))
                sized = "".join(f"{x / 2**20:>8,.0f} MiB" for x in told)
                print(
                    f"{name:10}{more:26}{sized}  {most.what}, {most.rows} x {most.tokens}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--shapes", action="store_true", help="plans of Llama's shapes alone")
    if parser.parse_args().shapes:
        shapes()
        return
    print(f"{'case':24}{'planned':>12}{'measured':>12}{'ratio':>8}")
    for name in parser.parse_args().names or CASES:
        said, found = planned(CASES[name]), measured(CASES[name])
        print(f"{name:24}{said:>8,.0f} MiB{found:>8,.0f} MiB{said / found:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
