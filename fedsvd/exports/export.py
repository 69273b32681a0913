"""What a run gives away: an adapter that PEFT loads, and the classifier around it."""

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
from fedsvd.models.backbone import load_tokenizer, written_name
from fedsvd.objectives.base import Exported

ADAPTER, MERGED = "adapter", "merged"


def export(worker: Worker, state: AdapterState, folder: Path, summary: Mapping[str, Any]) -> None:
    """Write what a finished run gives away into its folder; `summary` is what summary.json gets."""
    written = export_adapter(worker, state, folder)
    if written:
        # As it was loaded: the worker's own may have been told to cut.
        tokenizer = load_tokenizer(worker.settings.model)
        tokenizer.model_max_length = worker.settings.model.max_length
        tokenizer.save_pretrained(str(folder / written))
        write_card(folder / written, summary, "peft" if written == ADAPTER else "transformers")
    export_rest(worker, state, folder, written)


def export_rest(worker: Worker, state: AdapterState, folder: Path, written: str) -> None:
    """Write what the objective needs beside what `export_adapter` has written, which it returned."""
    worker.model.write(state)
    given = Exported(
        worker.settings, worker.task, worker.tokenizer, worker.model, worker.weights, written
    )
    worker.objective.export(given, folder)


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
    prefix = worker.objective.prefix(worker.model.backbone)
    tensors = {
        f"base_model.model.{prefix}{layer}.lora_{k}.weight": value
        for layer, pair in factors.items()
        for k, value in (("A", pair.A), ("B", pair.B))
    }
    if kind == "dora":
        for layer, module in layers.items():
            name = f"base_model.model.{prefix}{layer}.lora_magnitude_vector"
            tensors[name] = module.magnitude.weight  # type: ignore[union-attr,assignment]
    config = _peft_config(worker, factors, use_dora=kind == "dora")
    if _held_by_peft(worker, state, factors):
        _write_by_peft(worker, config, folder / ADAPTER)
        return ADAPTER
    (folder / ADAPTER).mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder / ADAPTER))
    save_file(
        {n: t.detach().cpu().contiguous() for n, t in tensors.items()},
        folder / ADAPTER / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    return ADAPTER


def _held_by_peft(worker: Worker, state: AdapterState, factors: Mapping[str, LowRank]) -> bool:
    """Return whether the model is PEFT's and holds just the factors that are exported: plain LoRA."""
    from peft import PeftModel

    model = worker.model.backbone
    same = all(factors[layer] is state.factors.get(layer) for layer in factors)
    whole = not worker.objective.prefix(model)  # PEFT would name a part's layers as the part does
    return same and whole and isinstance(model, PeftModel)


def _write_by_peft(worker: Worker, config: Any, folder: Path) -> None:
    """Let PEFT write the adapter that it holds, with the configuration that says what it is."""
    model: Any = worker.model.backbone
    held = model.peft_config[NAME]
    model.peft_config[NAME] = config
    try:
        # Embeddings are never adapted; asked to find out, PEFT would look for the base on the hub.
        model.save_pretrained(str(folder), selected_adapters=[NAME], save_embedding_layers=False)
    finally:
        model.peft_config[NAME] = held


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

    prefix = worker.objective.prefix(worker.model.backbone)
    layers: dict[str, Any] = {f"{prefix}{n}": m for n, m in worker.model.layers.items()}
    ranks = {f"{prefix}{n}": p.rank for n, p in factors.items()}
    scales = {n: layers[n].scaling[NAME] for n in ranks}
    rslora = worker.settings.adapter.rslora
    alphas = {n: scales[n] * (math.sqrt(r) if rslora else r) for n, r in ranks.items()}
    first = next(iter(ranks))
    bases = [m.get_base_layer() for m in layers.values()]
    config = LoraConfig(
        r=ranks[first],
        lora_alpha=alphas[first],
        rank_pattern={n: r for n, r in ranks.items() if r != ranks[first]},
        alpha_pattern={n: a for n, a in alphas.items() if a != alphas[first]},
        target_modules=list(ranks),
        base_model_name_or_path=written_name(worker.settings.model),
        inference_mode=True,
        task_type=worker.objective.peft_task,
        use_rslora=rslora,
        use_dora=use_dora,
        fan_in_fan_out=all(isinstance(base, Conv1D) for base in bases),
    )
    # PEFT makes a set of them, which has another order in every process.
    config.target_modules = sorted(ranks)
    return config


def _export_merged(worker: Worker, folder: Path) -> None:
    """Write the pretrained model with every adapted layer's weight replaced by the merged one."""
    plain = worker.objective.pretrained(worker.settings)
    prefix = worker.objective.prefix(worker.model.backbone)
    for layer, module in worker.model.layers.items():
        set_weight(plain.get_submodule(f"{prefix}{layer}"), merged_weight(module).cpu())
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
