"""Shared pieces: settings by overrides, a tiny random BERT, and a small real run."""

import functools
import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import BertConfig, BertModel

from fedsvd.adapters import lora
from fedsvd.config import from_config
from fedsvd.models.classifier import Classifier
from fedsvd.models.heads import random_head
from fedsvd.run import config_folder
from fedsvd.settings import AdapterSettings, Settings

# Workers of pytest-xdist (-n) share the cores: one thread each, and for the commands they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

SMALL = [
    "data.limit=60", "rounds=2", "training.batch_size=16", "training.local_steps=2",
    "training.precision=fp32", "privacy.accountant=rdp", "partition.alpha=100",
    "partition.min_examples=3",
]  # fmt: skip


@functools.lru_cache(maxsize=512)  # Hydra takes a tenth of a second, settings are immutable
def compose_settings(*overrides: str) -> Settings:
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose("config", list(overrides))
    return from_config(OmegaConf.to_container(config, resolve=True))


# As SMALL, for tests of what travels and who keeps it: hardly any arithmetic.
TINY = [*SMALL, "training.batch_size=4", "training.local_steps=1", "data.limit=48"]


# Files that take longest, most of them with few tests: begun last, one of them would keep one worker
# of pytest-xdist busy when the others have nothing left.
LONGEST = (
    "sweep/test_launch.py", "test_flower_app.py", "engines/test_ray.py", "engines/test_slices.py",
    "test_terminal.py", "audit/test_planted.py", "privacy/test_accounting.py", "client/test_kept.py",
    "strategies/test_flower.py", "node/test_honest.py", "test_experiment.py", "sweep/test_reuse.py",
    "checkpoints/test_resume.py", "test_examples.py", "checkpoints/test_interrupt.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Begin with the longest files."""
    here = Path(__file__).parent
    place = {here / name: k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_collection_finish():
    """Take what is imported out of the garbage collector's work: a run collects, 0.3 s each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def threads():
    """Leave PyTorch's threads as they were: engine.threads sets them for the process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_report(request):
    """Leave out the page with its figures, which takes longer than a short run; `report` keeps it."""
    if "report" in request.keywords:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsvd.recorders.report.write_report", lambda *_: None)
        yield


@pytest.fixture
def settings() -> Callable[..., Settings]:
    return compose_settings


@pytest.fixture(scope="session")
def tiny_inputs(tmp_path_factory) -> list[str]:
    """Gives the overrides of a tiny model and of data of its own."""
    from tests.tiny import make_inputs

    return make_inputs(tmp_path_factory.mktemp("inputs"))


def tiny_classifier(
    trains: str = "B", head_trains: bool = False, seed: int = 0, init: str = "kaiming"
) -> Classifier:
    """A two-layer BERT of width 16 with random weights and LoRA of rank 4, in float64."""
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)
    adapter = AdapterSettings("lora", rank=4, alpha=4.0, init=init)
    attached = lora.attach(backbone, adapter, seed, tuple(trains))
    head = random_head(16, 3, True, seed, torch.device("cpu"))
    model = Classifier(
        attached, head, pooling="mean", normalize=False, scale=3.0, precision="fp32",
        head_trains=head_trains,
    ).double()  # fmt: skip
    # B = 0 would hide every gradient of A; start from something.
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, p in model.trainable().items():
            if not name.startswith("head"):
                p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model


def tiny_batch(n: int, seed: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Padded token ids of different lengths, and labels."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 12, (n,), generator=generator)
    width = int(lengths.max()) if n else 1
    ids = torch.randint(1, 50, (n, width), generator=generator)
    mask = (torch.arange(width)[None, :] < lengths[:, None]).long()
    labels = torch.randint(0, 3, (n,), generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask}, labels
