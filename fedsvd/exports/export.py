"""What a run gives away: an adapter that PEFT loads, and the classifier around it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from fedsvd.adapters.adapted import NAME, Adapted, merged_weight, set_weight
from fedsvd.adapters.build import build_adapter
from fedsvd.client.worker import Worker
from fedsvd.exports.card import write_card
from fedsvd.lowrank import AdapterState, LowRank, difference
from fedsvd.models.backbone import load_backbone, written_name
from fedsvd.models.digest import vocabulary_digest

CLASSIFIER = "classifier.json"
HEAD = "head.safetensors"
ADAPTER, MERGED = "adapter", "merged"


def export(worker: Worker, state: AdapterState, folder: Path, summary: Mapping[str, Any]) -> None:
    """Write what a finished run gives away into its folder; `summary` is what summary.json gets."""
    written = export_adapter(worker, state, folder)
    if written:
        write_card(folder / written, summary, "peft" if written == ADAPTER else "transformers")
    export_classifier(worker, state, folder / "classifier", written)


def export_adapter(worker: Worker, state: AdapterState, folder: Path) -> str:
    """Write `adapter/` or `merged/` into the run folder; return which, or "" without an adapter.

    `adapter/` is for `peft.PeftModel.from_pretrained` on the plain pretrained backbone: as LoRA
    factors with s B A = the layer's weight now less the pretrained one, or as PEFT's DoRA. Where an
    initialiser moved part of the weight into the factors (PiSSA), that is s (B A - B0 A0), a pair of
    twice the rank with an alpha that leaves the scale s as it is; where the strategy
    changed the weight (a state with W), s (W + B A) as factors of the rank it has. `merged/` is for
    `AutoModel.from_pretrained`: the backbone with its weights changed, where no factors say it.
    """
    layers = worker.model.layers
    if not layers:
        return ""
    worker.model.write(state)
    kind = build_adapter(worker.settings.adapter).export
    factors = None if kind == "merged" else _factors(worker, state)
    if factors is None:
        _export_merged(worker, folder / MERGED)
        return MERGED
    tensors = {
        f"base_model.model.{layer}.lora_{k}.weight": value
        for layer, pair in factors.items()
        for k, value in (("A", pair.A), ("B", pair.B))
    }
    if kind == "dora":
        for layer, module in layers.items():
            magnitude = module.magnitude.weight  # type: ignore[union-attr]
            tensors[f"base_model.model.{layer}.lora_magnitude_vector"] = magnitude  # type: ignore[assignment]
    config = _peft_config(worker, factors, use_dora=kind == "dora")
    (folder / ADAPTER).mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder / ADAPTER))
    save_file(
        {n: t.detach().cpu().contiguous() for n, t in tensors.items()},
        folder / ADAPTER / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    return ADAPTER


def _factors(worker: Worker, state: AdapterState) -> dict[str, LowRank] | None:
    """Return each layer's pair relative to the pretrained weight, or None if one has none."""
    layers = worker.model.layers
    factors = dict(state.factors)
    if not factors:
        changes = {n: m.change() for n, m in layers.items() if isinstance(m, Adapted)}
        known = {n: pair for n, pair in changes.items() if pair is not None}
        return known if len(known) == len(layers) else None
    if build_adapter(worker.settings.adapter).absorbs:
        factors = {k: difference(p, worker.initial.factors[k]) for k, p in factors.items()}
    return with_base(factors, state.base) if state.base else factors


def _peft_config(worker: Worker, factors: Mapping[str, LowRank], use_dora: bool) -> Any:
    """Return PEFT's configuration for pairs whose scale is that of their layers."""
    from peft import LoraConfig

    layers: dict[str, Any] = worker.model.layers
    ranks = {n: p.rank for n, p in factors.items()}
    scales = {n: layers[n].scaling[NAME] for n in ranks}
    rslora = worker.settings.adapter.rslora
    alphas = {n: scales[n] * (math.sqrt(r) if rslora else r) for n, r in ranks.items()}
    first = next(iter(factors))
    bases = [m.get_base_layer() for m in layers.values()]
    config = LoraConfig(
        r=ranks[first],
        lora_alpha=alphas[first],
        rank_pattern={n: r for n, r in ranks.items() if r != ranks[first]},
        alpha_pattern={n: a for n, a in alphas.items() if a != alphas[first]},
        target_modules=list(factors),
        base_model_name_or_path=written_name(worker.settings.model),
        inference_mode=True,
        use_rslora=rslora,
        use_dora=use_dora,
        fan_in_fan_out=all(isinstance(base, Conv1D) for base in bases),
    )
    # PEFT makes a set of them, which has another order in every process.
    config.target_modules = sorted(factors)
    return config


def _export_merged(worker: Worker, folder: Path) -> None:
    """Write the pretrained backbone with every adapted layer's weight replaced by the merged one."""
    plain = load_backbone(worker.settings.model)
    for layer, module in worker.model.layers.items():
        set_weight(plain.get_submodule(layer), merged_weight(module).cpu())
    plain.save_pretrained(str(folder))  # type: ignore[operator]


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


def export_classifier(worker: Worker, state: AdapterState, folder: Path, backbone: str) -> None:
    """Write `classifier/`: the head, and what is needed to put the model together again.

    `backbone` is what `export_adapter` returned.
    """
    worker.model.write(state)
    model = worker.settings.model
    head = {f"head.{n}": p.detach().cpu() for n, p in worker.model.head.named_parameters()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in head.items()}, folder / HEAD)
    description = {
        "model": written_name(model),
        "weights": worker.weights,
        "vocabulary": vocabulary_digest(worker.tokenizer),
        "package": model.package,
        "folder": model.folder,
        "revision": model.revision,
        "pooling": model.pooling,
        "normalize": model.unit_features,
        "scale": model.logit_scale,
        "max_length": model.max_length,
        "labels": list(worker.task.label_names),
        "text_columns": len(worker.settings.data.text),
        "adapter": backbone == ADAPTER,
        "merged": backbone == MERGED,
    }
    (folder / CLASSIFIER).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
