"""A small random BERT with square, tall and wide layers, to measure adapters on."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertModel

from fedsvd.adapters import calibration, lora
from fedsvd.adapters.base import Adapter, Inputs
from fedsvd.lowrank import AdapterState
from fedsvd.models.classifier import Classifier
from fedsvd.models.fixed_heads import fixed_head
from fedsvd.settings import AdapterSettings

TARGETS = ("query", "value", "intermediate.dense", "layer.1.output.dense")
RANK, ALPHA = 4, 8.0
ODD, ODD_RANK = "encoder.layer.1.attention.self.value", 2  # one layer of another rank


def small_bert(seed: int = 0) -> BertModel:
    """Return a frozen BERT of two layers of width 16 with random weights, biases too."""
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(config, add_pooling_layer=False)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def small_batch(n: int = 5, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Return padded token ids of different lengths with their mask, and labels of 3 classes."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 12, (n,), generator=g)
    ids = torch.randint(1, 50, (n, int(lengths.max())), generator=g)
    mask = (torch.arange(ids.shape[1])[None, :] < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}, torch.randint(3, (n,), generator=g)


def small_classifier(
    adapter: Adapter, seed: int = 0, targets: tuple[str, ...] = TARGETS, trains: str = "AB"
) -> Classifier:
    """Return the small BERT with an adapter and a frozen head, in float32."""
    backbone = small_bert()
    settings = AdapterSettings(
        "lora", rank=RANK, alpha=ALPHA, targets=targets, ranks={ODD: ODD_RANK}
    )

    def measure(names: Iterable[str]) -> Mapping[str, Inputs]:
        return calibration.measure(backbone, names, [small_batch(6, k)[0] for k in range(4)])

    def differentiate(names: Iterable[str]) -> Mapping[str, Tensor]:
        bare = classified(lora.Attached(backbone, {}, AdapterState({})))
        batches = (small_batch(6, k) for k in range(4))
        losses = (cross_entropy(bare(inputs), y, reduction="none") for inputs, y in batches)
        return calibration.mean_gradients(backbone, names, losses)

    def classified(attached: lora.Attached) -> Classifier:
        head = fixed_head("equiangular", 16, 3, seed, torch.device("cpu"))
        return Classifier(
            attached, head, pooling="mean", normalize=False, scale=3.0, precision="fp32",
            head_trains=False,
        )  # fmt: skip

    return classified(
        lora.attach(
            backbone, settings, seed, tuple(trains), measure, adapter, differentiate=differentiate
        )
    )


def moved(model: Classifier, seed: int = 7) -> Classifier:
    """Return the model in float64 with noise on all that trains, so that nothing is at its start."""
    model, g = model.double(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.trainable().values():
            p.add_(0.1 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return model


def far(x: Tensor, y: Tensor) -> float:
    """Return the distance of x from y, relative to y's norm."""
    return float((x - y).norm() / (y.norm() + 1e-30))
