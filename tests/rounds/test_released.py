"""What rounds say of noise and subspace, and which model a summary and an export are of."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from transformers import AutoTokenizer

import fedsvd
from fedsvd.experiment import train
from fedsvd.lowrank.subspace import moved
from fedsvd.recorders.recorder import Recorders
from fedsvd.rounds.attempt import one_round
from tests.exports.test_export import RANK, small_bert, start


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return small_bert(tmp_path_factory.mktemp("bert"))


def test_distances_of_rows_against_scipys_angles():
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(2, 3, 7))
    space, rows = moved(torch.as_tensor(old), torch.as_tensor(new))
    angles = subspace_angles(old.T, new.T)
    assert space == pytest.approx(math.sqrt((np.sin(angles) ** 2).mean()), rel=1e-9)
    norms = np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1)
    cos = (old * new).sum(1) / norms
    assert rows == pytest.approx(math.sqrt((1 - cos**2).mean()), rel=1e-9)
    turned = np.linalg.qr(rng.normal(size=(3, 3)))[0] @ old
    space, rows = moved(torch.as_tensor(old), torch.as_tensor(turned))
    assert space < 1e-12 < 0.1 < rows
    assert moved(torch.as_tensor(old), torch.as_tensor(old)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("unit", "noise", "low", "high"),
    [
        ("dp_sgd", 300.0, 0.85, 1.15),
        ("dp_sgd", 1e-3, 0.0, 1e-3),
        ("client_level", 300.0, 0.85, 1.15),
    ],
)
def test_the_share_of_noise_is_what_the_noise_makes_of_the_update(unit, noise, low, high, backbone):
    run = start(
        backbone, *RANK, f"privacy={unit}", "privacy.epsilon=null",
        f"privacy.noise_multiplier={noise}", "strategy=fedsvd", "training.lr=0.01",
    )  # fmt: skip
    found = one_round(run, 1)
    assert low < found["noise_share"] < high
    numbers = sum(t.numel() for n, t in run.state.tensors().items() if not n.endswith(".A"))
    assert numbers > 500  # the energy of so many numbers is within the bounds above
    assert found["A_space"] < 1e-6 < found["A_rows"]
    if unit == "dp_sgd" and noise == 300.0:
        # The edge is the largest singular value of noise: some near it, none far above.
        largest = [values[0] for values in found["noise_ratios"].values()]
        assert 0.6 < min(largest) <= max(largest) < 1.3
        smallest = [values[-1] for values in found["noise_ratios"].values()]
        assert min(smallest) > 0.5 * found["noise_floor"]


def test_without_privacy_nothing_is_said_of_noise(backbone):
    found = one_round(start(backbone, *RANK, "privacy=none", "strategy=ffa"), 1)
    assert "noise_share" not in found
    assert (found["A_space"], found["A_rows"]) == (0.0, 0.0)


def test_a_summary_and_a_card_say_which_model_they_are_of(backbone, tmp_path):
    run = start(
        backbone, *RANK, "privacy=none", "strategy=fedsa", "training.lr=2",
        "training.clip_norm=null",
    )  # fmt: skip
    summary = train(run, Recorders([]), tmp_path)
    assert summary["evaluated"] == "clients' own models, mean over clients"
    assert "confusion" not in summary  # of no client's own model
    task = run.worker.task
    loaded = fedsvd.load(tmp_path, device="cpu")
    right = [
        loaded.predict(task.texts[i][0])[0] == task.label_names[task.labels[i]]
        for i in task.validation
    ]
    assert summary["exported_accuracy"] == pytest.approx(np.mean(right))
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert f"accuracy {summary['exported_accuracy']:.4f}" in card
    assert "Not this model: the run evaluated clients' own models" in card
    own = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert own("w1 w2")["input_ids"] == run.worker.tokenizer("w1 w2")["input_ids"]
    assert own.model_max_length == 32


def test_confusion_is_of_a_public_part_and_figures_by_label_follow(backbone, tmp_path):
    run = start(backbone, *RANK, "privacy=none", "strategy=fedsvd", "training.lr=2")
    summary = train(run, Recorders([]), tmp_path)
    task, held = run.worker.task, summary["confusion"]
    assert (held["part"], held["labels"]) == ("validation", ["0", "1"])  # there is no test part
    loaded = fedsvd.load(tmp_path)
    taken = [loaded.predict(task.texts[i][0])[0] for i in task.validation]
    pairs = Counter((str(task.labels[i]), k) for i, k in zip(task.validation, taken, strict=True))
    assert held["counts"] == [[pairs[a, b] for b in "01"] for a in "01"]
    (tn, fp), (fn, tp) = held["counts"]
    assert summary["accuracy"] == pytest.approx((tn + tp) / (tn + fp + fn + tp))
    below = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert summary["mcc"] == pytest.approx((tp * tn - fp * fn) / below if below else 0.0)
    f1 = [2 * a / (2 * a + fp + fn) if a else 0.0 for a in (tn, tp)]
    assert summary["macro_f1"] == pytest.approx(np.mean(f1))
    assert summary["evaluated"] == "the global model"
    assert "exported_accuracy" not in summary
