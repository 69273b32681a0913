"""Small random models of many architectures, as workers of a private run."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from fedsvd.adapters import lora
from fedsvd.client.worker import Worker, finish
from fedsvd.composing import settings_of
from fedsvd.data.task import Task
from fedsvd.data.tokens import Tokens
from fedsvd.models.classifier import Classifier
from fedsvd.models.heads import random_head, two_layer_head
from fedsvd.models.usable import usable
from fedsvd.privacy.hooks import Hooks
from fedsvd.privacy.plan import make_plan

VOCABULARY, WIDTH, PAD = 50, 16, 1
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 48,
    "pad_token_id": PAD, "initializer_range": 0.2,
}  # fmt: skip
DECODER = {"num_key_value_heads": 1, "rms_norm_eps": 1e-5, "bos_token_id": 2, "eos_token_id": 3}
RELATIVE = {
    "vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 2,
    "num_heads": 2, "pad_token_id": PAD,
}  # fmt: skip
TWO_SIDES = {
    "vocab_size": VOCABULARY, "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "max_position_embeddings": 48, "pad_token_id": PAD, "init_std": 0.2,
}  # fmt: skip
DISENTANGLED = {
    "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16,
    "position_biased_input": False, "type_vocab_size": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A class of Transformers with what makes it small, the layers to adapt and the pooling."""

    name: str  # without "Config" and "Model"
    targets: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    pooling: str = "mean"
    common: bool = True  # whether it takes `COMMON`
    without_pooler: bool = False


QUERY_VALUE = ("query", "value")
PROJ = ("q_proj", "v_proj")
ARCHITECTURES = {
    "BERT": Architecture("Bert", QUERY_VALUE, without_pooler=True),
    "RoBERTa": Architecture("Roberta", QUERY_VALUE, without_pooler=True),
    "ELECTRA": Architecture("Electra", QUERY_VALUE, {"embedding_size": WIDTH}),
    "DistilBERT": Architecture(
        "DistilBert", ("q_lin", "v_lin"),
        {"vocab_size": VOCABULARY, "dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 24,
         "max_position_embeddings": 48, "pad_token_id": PAD, "initializer_range": 0.2},
        common=False,
    ),
    "MPNet": Architecture("MPNet", ("q", "v")),
    "ALBERT": Architecture("Albert", QUERY_VALUE, {"embedding_size": WIDTH}),
    "ModernBERT": Architecture(
        "ModernBert", ("Wqkv",),
        {"local_attention": 8, "global_attn_every_n_layers": 2, "bos_token_id": 2,
         "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3},
    ),
    "DeBERTa": Architecture(
        "Deberta", ("in_proj", "pos_proj", "pos_q_proj"), DISENTANGLED
    ),
    "DeBERTa-v2": Architecture("DebertaV2", ("query_proj", "value_proj"), DISENTANGLED),
    "DeBERTa-v2, keys shared": Architecture(
        "DebertaV2", ("query_proj", "value_proj"), {**DISENTANGLED, "share_att_key": True}
    ),
    "DeBERTa-v3": Architecture(  # as microsoft/deberta-v3-base says
        "DebertaV2", ("query_proj", "value_proj"),
        {**DISENTANGLED, "share_att_key": True, "norm_rel_ebd": "layer_norm",
         "position_buckets": 8, "max_relative_positions": -1},
    ),
    "Longformer": Architecture("Longformer", QUERY_VALUE, {"attention_window": 8}),
    "BigBird": Architecture("BigBird", QUERY_VALUE, {"attention_type": "original_full"}),
    "ConvBERT": Architecture(
        "ConvBert", QUERY_VALUE, {"embedding_size": WIDTH, "head_ratio": 1, "conv_kernel_size": 3}
    ),
    "SqueezeBERT": Architecture(
        "SqueezeBert", ("dense",), {"embedding_size": WIDTH}
    ),
    "MobileBERT": Architecture(
        "MobileBert", QUERY_VALUE,
        {"embedding_size": WIDTH, "intra_bottleneck_size": WIDTH, "true_hidden_size": WIDTH},
    ),
    "Nystromformer": Architecture(
        "Nystromformer", QUERY_VALUE, {"num_landmarks": 4, "segment_means_seq_len": 48}
    ),
    "FNet": Architecture("FNet", ("intermediate.dense",)),
    "Funnel": Architecture(
        "Funnel", ("q_head", "v_head"),
        {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_head": 2, "d_head": 8, "d_inner": 24,
         "block_sizes": [1, 1], "num_decoder_layers": 1, "pad_token_id": PAD},
        common=False,
    ),
    "XLNet": Architecture(
        "XLNet", ("layer_1", "layer_2"),
        {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layer": 2, "n_head": 2, "d_inner": 24,
         "pad_token_id": PAD, "initializer_range": 0.2},
        common=False,
    ),
    "GPT-2": Architecture(
        "GPT2", ("c_attn",),
        {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 48,
         "pad_token_id": PAD, "initializer_range": 0.2},
        "last", common=False,
    ),
    "Llama": Architecture("Llama", PROJ, DECODER, "last"),
    "Qwen2": Architecture("Qwen2", PROJ, DECODER, "last"),
    "Qwen2-MoE": Architecture(
        "Qwen2Moe", ("q_proj", "v_proj", "shared_expert.up_proj", "shared_expert.down_proj"),
        {**DECODER, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 12,
         "num_experts": 4, "num_experts_per_tok": 2}, "last",
    ),
    "GPT-NeoX": Architecture("GPTNeoX", ("query_key_value",), DECODER, "last"),
    "OPT": Architecture("OPT", PROJ, {"ffn_dim": 24, "word_embed_proj_dim": WIDTH}, "last"),
    "BLOOM": Architecture("Bloom", ("query_key_value",), {"n_layer": 2, "n_head": 2}, "last"),
    "Falcon": Architecture("Falcon", ("query_key_value",), pooling="last"),
    "Gemma": Architecture("Gemma", PROJ, {**DECODER, "head_dim": 8}, "last"),
    "Mixtral": Architecture(
        "Mixtral", PROJ, {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}, "last"
    ),
    "Mamba": Architecture(
        "Mamba", ("in_proj", "x_proj"), {"state_size": 4, "pad_token_id": PAD}, "last"
    ),
    "RWKV": Architecture("Rwkv", ("key", "value"), {"context_length": 64}, "last"),
    "XLM": Architecture(
        "XLM", ("q_lin", "v_lin"),
        {"vocab_size": VOCABULARY, "emb_dim": WIDTH, "n_layers": 2, "n_heads": 2,
         "max_position_embeddings": 48, "pad_index": PAD, "pad_token_id": PAD, "init_std": 0.2},
        common=False,
    ),
    "RoFormer": Architecture("RoFormer", QUERY_VALUE, {"embedding_size": WIDTH}),
    "T5, its encoder": Architecture("T5", ("q", "v"), RELATIVE, common=False),
    "Switch, its encoder": Architecture(
        "SwitchTransformers", ("q", "v"),
        {**RELATIVE, "num_decoder_layers": 2, "num_experts": 4, "num_sparse_encoder_layers": 1},
        common=False,
    ),
    "BART": Architecture("Bart", PROJ, TWO_SIDES, common=False),
    "Pegasus, its encoder": Architecture("Pegasus", PROJ, TWO_SIDES, common=False),
    "CANINE": Architecture("Canine", QUERY_VALUE, {"num_hash_buckets": 64}),
    "Reformer": Architecture(
        "Reformer", QUERY_VALUE,
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "attention_head_size": 8,
         "num_attention_heads": 2, "feed_forward_size": 24, "attn_layers": ["local", "local"],
         "axial_pos_embds": False, "max_position_embeddings": 48, "local_attn_chunk_length": 4,
         "pad_token_id": PAD},
        common=False,
    ),
    "ViT": Architecture("ViT", QUERY_VALUE, {"image_size": 8, "patch_size": 4}),
}  # fmt: skip


def small_backbone(architecture: Architecture, dropout: float = 0.0) -> nn.Module:
    """Return the frozen model with random weights, the same at every call."""
    found: Any = transformers
    config = getattr(found, f"{architecture.name}Config")(
        **{**(COMMON if architecture.common else {}), **architecture.settings}
    )
    for key in config.to_dict():
        if ("dropout" in key or "pdrop" in key) and isinstance(getattr(config, key), float):
            setattr(config, key, dropout)
    more = {"add_pooling_layer": False} if architecture.without_pooler else {}
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = getattr(found, f"{architecture.name}Model")(config, **more)
    return usable(architecture.name, model.eval()).requires_grad_(False)


def some_texts(n: int, seed: int = 0, shortest: int = 4, longest: int = 12) -> Tokens:
    """Return random texts of unequal lengths with labels of three classes."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (n,), generator=g)
    ids = [torch.randint(4, VOCABULARY, (int(t),), generator=g) for t in lengths]
    return Tokens({"input_ids": ids}, torch.randint(3, (n,), generator=g), lengths, PAD)


def small_worker(
    architecture: Architecture, *overrides: str, trains: tuple[str, ...] = ("A", "B"),
    n: int = 12, texts: Tokens | None = None, backbone: nn.Module | None = None,
) -> Worker:  # fmt: skip
    """Return a worker of one client with n texts, its gradients settled as in any process.

    `overrides` are of the configuration. Raises InputError as a run does.
    """
    given = [
        "privacy=dp_sgd", "privacy.accountant=rdp", "training.precision=fp32", "device=cpu",
        "model.max_length=20", f"data.public_size={n}", "clients.number=1", "clients.per_round=1",
        "training.local_steps=1", f"training.batch_size={n}", *overrides,
    ]  # fmt: skip
    settings = settings_of(given)
    settings = replace(settings, model=replace(settings.model, name=architecture.name))
    texts = some_texts(n) if texts is None else texts
    rows, none = np.arange(n), np.zeros(0, dtype=np.int64)
    task = Task("random", [("",)] * n, texts.labels.numpy(), ("a", "b", "c"),
                rows, none, none, "drawn", 0)  # fmt: skip
    adapter = replace(settings.adapter, rank=3, alpha=3.0, targets=architecture.targets)
    body = small_backbone(architecture, settings.model.dropout) if backbone is None else backbone
    attached = lora.attach(body, adapter, 0, trains)
    chosen, cpu = settings.model, torch.device("cpu")
    head: nn.Module = random_head(WIDTH, 3, True, 0, cpu)
    if chosen.head_form == "two_layer":
        head = two_layer_head(WIDTH, 3, True, 0, cpu, dropout=chosen.dropout)
    model = Classifier(
        attached, head, pooling=architecture.pooling, normalize=False, scale=3.0,
        precision="fp32", head_trains=chosen.head == "trained",
    )  # fmt: skip
    hooks = Hooks(model) if settings.privacy.gradients != "loop" else None
    worker = Worker(
        settings, task, texts, [rows], make_plan(settings, [n]), torch.device("cpu"), "fp32",
        None, model, hooks, "random",
    )  # fmt: skip
    finish(worker)
    return worker
