"""python -m experiments.suite.room TASK ... --models M: how much room a task leaves to adapters.

Without privacy and without clients, on the whole training part: the most frequent label, the head
alone, LoRA (rank 8 on query and value, with the head), all weights, and all weights from a random
start. Each is trained with AdamW at the rates of the grid and the best on validation is shown; the
test part is not looked at. A task has room if LoRA is at least 10 points above the head alone.
Recorded in --results, a JSON line each; what is there is not made again. The table is of runs of
--steps alone, of the rates that were run; --table prints it and trains nothing.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from experiments.each import restarted
from experiments.suite.plan import load
from fedsvd.composing import settings_of

HERE = Path(__file__).parent
RATES = {
    "head": (5e-2, 1e-2, 1e-3),
    "lora": (2e-2, 5e-3, 1e-3),
    "full": (1e-3, 2e-4),
    "random": (1e-3, 2e-4),
}
ADAPTER = {"lora": "lora"}
ROOM = 0.10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.suite.room",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tasks", nargs="*", metavar="TASK")
    parser.add_argument("--models", nargs="+", default=["bert_tiny"], metavar="NAME")
    parser.add_argument("--steps", type=int, default=600, help="of 128 examples (default: 600)")
    parser.add_argument("--results", type=Path, default=HERE / "room.jsonl", metavar="FILE")
    parser.add_argument("--table", action="store_true", help="print what is recorded, and end")
    given = parser.parse_args(arguments)
    suite = load()
    tasks = given.tasks or list(suite["tasks"])
    for group, names in (("tasks", tasks), ("models", given.models)):
        for name in names:
            if name not in suite[group]:
                parser.error(f"{group}: {name!r} is not in suite.yaml; {', '.join(suite[group])}")
    if not given.table:
        make(suite, given.results, given.models, tasks, given.steps)
    print("\n".join(table(given.results, given.models, tasks, given.steps)))
    return 0


def make(
    suite: dict[str, Any], results: Path, models: Sequence[str], tasks: Sequence[str], steps: int
) -> None:
    """Train and record what is not recorded yet, kind by kind over all models and tasks."""
    for what, model, task in product(RATES, models, tasks):
        for lr in RATES[what]:
            key = {"task": task, "model": model, "what": what, "lr": lr, "steps": steps}
            if not _held(results, key):
                found = train(suite, key)
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(key | found) + "\n")


def train(suite: dict[str, Any], key: dict[str, Any]) -> dict[str, float]:
    """Train one model and return its validation accuracy and that of the most frequent label."""
    from fedsvd.client.worker import build_worker

    told = [
        *suite["tasks"][key["task"]], *suite["models"][key["model"]]["overrides"],
        "partition=iid", "privacy=none", "strategy=fedavg", "model.head=trained",
        "model.head_init=zeros", "training.precision=fp32", "training.cache=off",
        f"adapter={ADAPTER.get(key['what'], 'none')}", f"engine.threads={torch.get_num_threads()}",
    ]  # fmt: skip
    worker = build_worker(settings_of(told))
    parameters: list[torch.Tensor] = list(worker.model.trainable().values())
    if key["what"] in ("full", "random"):
        backbone = worker.model.backbone
        if key["what"] == "random":
            _forget(backbone)
        parameters += [p.requires_grad_(True) for p in backbone.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=key["lr"])
    steps, generator = key["steps"], torch.Generator().manual_seed(0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 - n / steps)
    rows = worker.task.train
    for _ in range(steps):
        drawn = rows[torch.randint(len(rows), (128,), generator=generator).numpy()].tolist()
        optimizer.zero_grad()
        for group in worker.tokens.microbatches(drawn, 2048):
            (worker.losses(group).sum() / len(drawn)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    labels = worker.tokens.labels[torch.as_tensor(worker.task.validation)]
    right = worker.outputs(worker.task.validation.tolist()).argmax(1) == labels
    found = {
        "accuracy": round(float(right.double().mean()), 4),
        "majority": round(float(labels.bincount().max() / len(labels)), 4),
    }
    print(key | found, flush=True)
    return found


@torch.no_grad()
def _forget(backbone: torch.nn.Module) -> None:
    """Replace pretrained weights by BERT's start: N(0, 0.02^2), biases 0, scales 1."""
    generator = torch.Generator().manual_seed(0)
    for name, p in backbone.named_parameters():
        if p.ndim > 1:
            p.normal_(0, 0.02, generator=generator)
        else:
            p.fill_(0.0 if name.endswith("bias") else 1.0)


def _lines(results: Path) -> list[dict[str, Any]]:
    text = results.read_text(encoding="utf-8") if results.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def _held(results: Path, key: dict[str, Any]) -> bool:
    return any(key.items() <= line.items() for line in _lines(results))


def table(results: Path, models: Sequence[str], tasks: Sequence[str], steps: int) -> list[str]:
    """Return the lines of the table: the best rate of each kind of training of so many steps."""
    out = [
        "| model | task | majority | head | LoRA | all weights | random start | room |",
        "|---" * 8 + "|",
    ]
    lines = _lines(results)
    for model in models:
        for task in tasks:
            place = {"model": model, "task": task, "steps": steps}.items()
            runs = [x for x in lines if place <= x.items()]
            best = {
                w: max((x["accuracy"] for x in runs if x["what"] == w), default=None) for w in RATES
            }
            if best["head"] is None or best["lora"] is None:
                continue
            gain = round(best["lora"] - best["head"], 4)
            cells = ["-" if best[w] is None else f"{best[w]:.3f}" for w in RATES]
            told = f"{gain:+.3f}, {'yes' if gain >= ROOM else 'no'}"
            out.append(
                f"| {model} | {task} | {runs[0]['majority']:.3f} | {' | '.join(cells)} | {told} |"
            )
    return out


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    restarted("experiments.suite.room")
    sys.exit(main())
