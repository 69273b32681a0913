"""python -m benchmarks.gradient_start [--texts N] [--unseen N] [--rank R]: what a start sees.

On the default model and task, query and value: which share of the energy of the mean gradient on
unseen texts (validation) lies in the rows of A, ||G A^T||^2 / ||G||^2, and between the fixed factors
of an r x r matrix, ||B^T G A^T||^2 / ||G||^2, both summed over layers. A start looks at `--texts`
public texts with labels, or at the texts of the labels. Baselines in the same run: random orthonormal
rows, and singular vectors of the weight.
"""

import argparse
import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import machine
from fedsvd.adapters import lora
from fedsvd.adapters.build import build_adapter
from fedsvd.client.public import PublicTexts
from fedsvd.client.worker import Worker, build_worker
from fedsvd.composing import settings_of
from fedsvd.settings import AdapterSettings, Settings

HEADS = {"trained": "texts", "frozen_random": "random"}  # where the head starts
STARTS: dict[str, tuple[str, dict[str, object], str]] = {
    "gradient, public texts": ("gradient", {}, "public"),
    "gradient, label texts": ("gradient", {}, "labels"),
    "xkv of gradients": ("xkv", {"source": "gradients"}, "public"),
    "xkv of weights": ("xkv", {}, "public"),
    "eva": ("eva", {}, "public"),
    "pissa": ("pissa", {}, "public"),
    "random orthonormal": ("lora", {"init": "orthonormal"}, "public"),
    "lora_sb, gradient": ("lora_sb", {}, "public"),
    "lora_sb, gradient, label texts": ("lora_sb", {}, "labels"),
    "lora_sb, sign": ("lora_sb", {"step": "sign"}, "public"),
    "lora_xs": ("lora_xs", {"start": "vectors"}, "public"),
}


def settings_from(start: str, texts: int) -> Settings:
    given = [
        "adapter=none", "privacy=none", "training.precision=fp32", f"data.public={texts}",
        f"model.head_init={start}",
    ]  # fmt: skip
    return settings_of(given)


def looks_of(worker: Worker, texts: str) -> PublicTexts:
    """Return the public texts, or those of the labels alone."""
    task = worker.task
    if texts == "labels":
        task = replace(task, public=np.zeros(0, dtype=np.int64))
    model = copy.deepcopy(worker.model)
    return PublicTexts(worker.settings, task, worker.tokens, worker.tokenizer, model, worker.device)


def shares(worker: Worker, start: str, rank: int, unseen: Mapping[str, Tensor]) -> list[float]:
    """Return the share over all layers, and the smallest and the largest of a layer."""
    name, options, texts = STARTS[start]
    settings = AdapterSettings(name, rank=rank, alpha=rank, options=options)
    looks = looks_of(worker, texts)
    attached = lora.attach(
        looks.model.backbone, settings, 0, ("B",), looks.inputs, build_adapter(settings),
        differentiate=looks.gradients,
    )  # fmt: skip
    seen, whole = [], []
    for layer, G in unseen.items():
        if layer in attached.initial.factors:
            A, B = attached.initial.factors[layer].A, None
        else:
            module: Any = attached.layers[layer]
            A, B = module.A, module.B
        part = G @ basis(A.double().mT)
        part = part if B is None else basis(B.double()).mT @ part
        seen.append(float(part.square().sum()))
        whole.append(float(G.square().sum()))
    each = [s / w for s, w in zip(seen, whole, strict=True)]
    return [sum(seen) / sum(whole), min(each), max(each)]


def basis(columns: Tensor) -> Tensor:
    return torch.linalg.qr(columns)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--unseen", type=int, default=512)
    parser.add_argument("--rank", type=int, default=8)
    given = parser.parse_args()
    print(machine())
    for head, start in HEADS.items():
        worker = build_worker(settings_from(start, given.texts))
        looks = looks_of(worker, "public")
        names = [
            n for n, _ in looks.model.backbone.named_modules() if n.endswith(("query", "value"))
        ]
        apart = replace(worker.task, public=worker.task.validation)
        held = replace(worker.settings, adapter=AdapterSettings("lora", calibration=given.unseen))
        unseen = replace(looks, task=apart, settings=held).gradients(names)
        size = torch.stack([g.norm() for g in unseen.values()])
        print(f"head {head}: {len(worker.task.public)} public texts, ||G|| of a layer on "
              f"{min(given.unseen, len(apart.public))} unseen {float(size.min()):.3f} to "
              f"{float(size.max()):.3f}")  # fmt: skip
        for start in STARTS:
            share, least, most = shares(worker, start, given.rank, unseen)
            print(f"  {start:32} {share:7.2%}   of a layer {least:6.2%} to {most:6.2%}")


if __name__ == "__main__":
    main()
