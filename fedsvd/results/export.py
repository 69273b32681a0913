"""What a run gives away: an adapter that PEFT loads, and the classifier around it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from fedsvd.adapters.initial import ABSORBED
from fedsvd.lowrank import AdapterState, LowRank, difference

if TYPE_CHECKING:
    from fedsvd.client.worker import Worker

CLASSIFIER = "classifier.json"
HEAD = "head.safetensors"


def export_adapter(worker: "Worker", state: AdapterState, folder: Path) -> None:
    """Write `adapter/`: LoRA factors and config, for `peft.PeftModel.from_pretrained`.

    It applies to the plain pretrained backbone. Where the initialiser changed the base weight
    (PiSSA), the update relative to the plain weight is s (B A - B0 A0), written as one pair of twice
    the rank with alpha doubled, so that the scale s = alpha / r is the same. Where the strategy
    changed it (a state with W), the update s (W + B A) is written as factors of the rank it has, up
    to the layer's size. Without factors (adapter=none) nothing is written.
    """
    if not state.factors:
        return
    from peft import LoraConfig

    adapter = worker.settings.adapter
    factors = dict(state.factors)
    if adapter.init in ABSORBED:
        factors = {k: difference(p, worker.initial.factors[k]) for k, p in factors.items()}
    if state.base:
        factors = with_base(factors, state.base)
    rank = next(iter(factors.values())).rank
    tensors: dict[str, Tensor] = {}
    for layer, pair in factors.items():
        for kind, value in (("A", pair.A), ("B", pair.B)):
            name = f"base_model.model.{layer}.lora_{kind}.weight"
            tensors[name] = value.detach().cpu().contiguous()
    config = LoraConfig(
        r=rank,
        lora_alpha=adapter.alpha * rank / adapter.rank,  # type: ignore[arg-type]
        target_modules=list(adapter.targets),
        base_model_name_or_path=worker.settings.model.name,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def with_base(factors: Mapping[str, LowRank], base: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """Return pairs whose products are W + B A, all of the largest rank that a layer needs.

    That rank is numerical, to float32's precision; other layers are padded with zeros.
    """
    split: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for layer, pair in factors.items():
        dense = pair.B.double() @ pair.A.double()
        if layer in base:
            dense = dense + base[layer].double()
        split[layer] = torch.linalg.svd(dense, full_matrices=False)
    tiny = torch.finfo(torch.float32).eps
    rank = max(1, *(int((tiny * S[0] < S).sum()) for _, S, _ in split.values()))
    pairs = {}
    for layer, (U, S, Vh) in split.items():
        B, A = U[:, :rank] * S[:rank], Vh[:rank]
        lacking = rank - len(A)
        B = torch.nn.functional.pad(B, (0, lacking))
        A = torch.nn.functional.pad(A, (0, 0, 0, lacking))
        pairs[layer] = LowRank(A.float(), B.float())
    return pairs


def export_classifier(worker: "Worker", state: AdapterState, folder: Path) -> None:
    """Write `classifier/`: the head, and what is needed to put the model together again."""
    worker.model.write(state)
    model = worker.settings.model
    head = {f"head.{n}": p.detach().cpu() for n, p in worker.model.head.named_parameters()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in head.items()}, folder / HEAD)
    description = {
        "model": model.name,
        "package": model.package,
        "folder": model.folder,
        "revision": model.revision,
        "pooling": model.pooling,
        "normalize": model.normalize,
        "scale": model.scale,
        "max_length": model.max_length,
        "labels": list(worker.task.label_names),
        "text_columns": len(worker.settings.data.text),
        "adapter": bool(state.factors),
    }
    (folder / CLASSIFIER).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
