"""The model card: what the hub reads of it, and what it says of privacy and noise."""

import pytest
from huggingface_hub import ModelCard

from fedsvd.exports.card import write_card

SUMMARY = {
    "task": "rotten_tomatoes", "adapter": "lora", "model": "owner/model", "strategy": "fedsvd.FedSVD",
    "head": "frozen_random", "head_form": "two_layer",
    "rounds_completed": 50, "epsilon_max": 0.99812, "delta": 1e-5, "unit": "example",
    "noise_source": "from the operating system",
}  # fmt: skip


def card(folder, library="peft", **changes):
    write_card(folder, {**SUMMARY, **changes}, library)
    return ModelCard.load(folder / "README.md")


def test_the_hub_reads_its_metadata(tmp_path):
    found = card(tmp_path)
    assert found.data.base_model == "owner/model"
    assert found.data.library_name == "peft"
    assert found.data.tags == ["federated-learning", "fedsvd"]
    assert found.text.strip().splitlines() == [
        "# rotten_tomatoes: lora for owner/model",
        "",
        "- Base model: owner/model",
        "- Task: rotten_tomatoes",
        "- Head: frozen_random (two_layer)",
        "- Strategy: fedsvd.FedSVD, 50 rounds",
        "- Privacy: epsilon 0.9981 at delta 1e-05, unit: one example (the largest of any client)",
        "- Noise: from the operating system",
    ]


def test_a_folder_is_no_name_of_the_hub(tmp_path):
    found = card(tmp_path, "transformers", model=str(tmp_path))
    assert found.data.base_model is None
    assert found.data.library_name == "transformers"
    assert f"- Base model: {tmp_path}" in found.text


def test_without_privacy_it_says_so(tmp_path):
    found = card(tmp_path, epsilon_max=None, delta=None, unit="none", noise_source="none: x")
    assert "- Privacy: none\n- Noise: none: x" in found.text


@pytest.mark.parametrize("name", ["a\nlicense: mit", 'a"b: [', "---\n- x", "ü: #1"])
def test_a_name_adds_no_lines_and_no_metadata(name, tmp_path):
    found = card(tmp_path, model=name, task=name)
    assert found.data.base_model == " ".join(name.split())
    assert found.data.license is None
    assert len(found.text.strip().splitlines()) == 8
