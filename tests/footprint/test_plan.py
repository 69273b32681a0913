"""`--plan` against loaded models, hooks that ran, a process's own memory, and bad input."""

import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedsvd.client.worker import build_worker
from fedsvd.errors import InputError
from fedsvd.factors import factors_of
from fedsvd.footprint.outline import Moment, sizes
from fedsvd.footprint.plan import EARLY, LATE, make_plan, told
from fedsvd.machine import resident
from fedsvd.models.language_model import CHUNK_BYTES
from fedsvd.run import main
from tests.conftest import compose_settings
from tests.objectives.small import SIZE, overrides, tokenizer
from tests.tiny import make_inputs

STATUS, MAPS = "/proc/self/status", "/proc/self/maps"
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", **SIZE}
STEP = Moment("a micro-batch", 3, 8, "fp32")


def outline(folder, **changes):
    """Write a configuration without weights, as `--plan` needs no more, and return the overrides."""
    given = overrides(folder)
    (folder / "shape").mkdir()
    (folder / "shape" / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    save_file({"none": torch.zeros(1)}, folder / "shape" / "model.safetensors")
    tokenizer().save_pretrained(folder / "shape")
    return [*given, f"model.name={folder / 'shape'}"]


def held(model):
    """Return the bytes of what a loaded model's frozen part holds, what is tied once."""
    frozen = [*model.named_parameters(), *model.named_buffers()]
    return sum(t.nbytes for n, t in frozen if "lora_" not in n and not t.requires_grad)


STORED = ["model.dtype=bfloat16", "model.quantization=int8", "model.quantization=nf4"]


@pytest.mark.parametrize(
    ("kind", "more"),
    [("bert", []), *((kind, []) for kind in ("llama", "qwen2", "gpt2")), ("gpt2", STORED[:1]),
     *(("llama", [one]) for one in STORED), ("qwen2", [STORED[0], STORED[2]])],
)  # fmt: skip
def test_planned_weights_are_the_bytes_of_the_loaded_model(tmp_path, kind, more):
    if "quantization" in "".join(more):
        pytest.importorskip("bitsandbytes", reason="needs the optional package bitsandbytes")
    given = make_inputs(tmp_path) if kind == "bert" else overrides(tmp_path, kind)
    settings = compose_settings(*given, *more)
    found = sizes(settings, factors_of(settings), STEP)
    worker = build_worker(settings)
    assert found.weights == held(worker.model)
    if more and os.path.exists(
        MAPS
    ):  # no piece of the mapped file is left: it would keep all of it
        gc.collect()
        assert str(tmp_path) not in Path(MAPS).read_text()
    plain = build_worker(compose_settings(*given)) if more else worker
    numbers = [p for n, p in plain.model.named_parameters() if "lora_" not in n]
    assert found.loaded == sum(p.nbytes for p in numbers if not p.requires_grad)


@pytest.mark.parametrize(("kind", "each"), [("int8", 1), ("nf4", 0.5)])
def test_quantised_weights_by_arithmetic(tmp_path, kind, each):
    """Per block of the small Llama: q, o of 16 x 16, k, v of 8 x 16, and three of 24 x 16."""
    pytest.importorskip("bitsandbytes", reason="needs the optional package bitsandbytes")
    settings = compose_settings(*overrides(tmp_path), f"model.quantization={kind}")
    blocks = 3 * (2 * 16 * 16 + 2 * 8 * 16 + 3 * 24 * 16)
    rows = 3 * (16 + 16 + 8 + 8 + 24 + 24 + 16)
    scales = 4 * rows if kind == "int8" else 4 * blocks // 64 + 3 * 7 * 16 * 4  # and NF4's numbers
    rest = 4 * (320 * 16 + 3 * 2 * 16 + 16) + 4 * 4 * 2  # the table, norms, rotary frequencies
    assert sizes(settings, ("B",), STEP).weights == each * blocks + scales + rest


@pytest.mark.parametrize(
    ("kind", "more"),
    [("llama", []), ("gpt2", ["training.factors=AB"]), ("bert", []),
     ("bert", ["model.head_form=two_layer", "model.head_bias=true"])],
)  # fmt: skip
def test_planned_gradients_are_those_that_hooks_leave(tmp_path, kind, more):
    given = make_inputs(tmp_path) if kind == "bert" else overrides(tmp_path, kind)
    size = ["model.max_length=16", "training.microbatch_tokens=4096", "privacy.gradients=hooks"]
    settings = compose_settings(*given, *size, *more)
    worker, plan = build_worker(settings), make_plan(settings)
    worker.hooks.renew()
    worker.losses([0, 1, 2]).sum().backward()
    left = sum(p.grad_sample.nbytes for p in worker.model.trainable().values())
    assert plan.gradients / plan.moment.rows == left / 3


def test_activations_grow_with_the_batch_and_shrink_by_checkpointing(tmp_path):
    settings = compose_settings(*overrides(tmp_path))
    again = compose_settings(*overrides(tmp_path), "training.gradient_checkpointing=true")
    many = Moment("a micro-batch", 12, 8, "fp32")
    one, four = (sizes(settings, ("B",), m).activations for m in (STEP, many))
    assert four == pytest.approx(4 * one, rel=0.1)
    assert sizes(again, ("B",), many).activations < four / 4
    most = sizes(settings, ("B",), many).most
    assert sizes(settings, ("B",), Moment("", 12, 8, "fp32", trains=False)).most < most / 2


def test_no_more_logits_than_a_chunk_are_planned(tmp_path):
    """2,048 tokens of 50,000 words in float32 are 391 MiB, their exponentials as much again."""
    given = outline(tmp_path, vocab_size=50_000, max_position_embeddings=1024)
    size = ["model.max_length=512", "training.microbatch_tokens=2048"]
    settings = compose_settings(*given, *size)
    whole = 4 * 2048 * 50_000
    found = make_plan(settings)
    own = found.activations + found.gradients + found.passing
    assert CHUNK_BYTES < own < 4 * CHUNK_BYTES < 0.7 * whole
    for few in (1, 3):  # what does not fill a chunk takes what it takes
        most = sizes(settings, ("B",), Moment("", few, 8, "fp32")).most
        logits = 4 * few * 7 * 50_000
        assert 2 * logits < most < 4 * logits + 2**20


def test_a_plan_loads_no_weights_and_writes_nothing(tmp_path, capsys, monkeypatch):
    """The folder holds none; they would take 5 GB."""
    given = outline(
        tmp_path, hidden_size=4096, intermediate_size=16384, vocab_size=64_000,
        num_attention_heads=32, head_dim=128,
    )  # fmt: skip
    compose_settings(*given)
    for name in (*EARLY, *LATE, "transformers.models.llama.modeling_llama"):
        import_module(name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before, files = resident(), {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert main([*given, "rounds=3", "--plan"]) == 0
    assert resident() - before < 2**28
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == files
    said = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    numbers = 2 * 64_000 * 4096 + 3 * (2 * 4096**2 + 2 * 4096 * 128 + 3 * 4096 * 16384)
    assert float(said["weights"].split()[1].replace(",", "")) == pytest.approx(
        4 * numbers / 2**20, rel=1e-3
    )
    assert {"libraries", "activations", "gradients", "peak"} <= set(said)


def test_what_would_make_it_fit_is_said_with_its_peak(tmp_path, monkeypatch):
    settings = compose_settings(*outline(tmp_path, hidden_size=512, intermediate_size=2048))
    plan = make_plan(settings)
    other = replace(plan, activations=plan.activations / 2)
    asked = []

    def planned(wanted):
        asked.append(wanted)
        return other if wanted.training.gradient_checkpointing else plan

    monkeypatch.setattr("fedsvd.footprint.plan.make_plan", planned)
    lines = told(replace(plan, room=plan.most - 1), settings)
    at = lines.index("it does not fit; what to change:")
    peak = f"{other.most / 2**20:,.0f} MiB"
    assert [line.split(maxsplit=1) for line in lines[at + 1 :]] == [
        ["training.gradient_checkpointing=true", peak]
    ]
    assert len({repr(one) for one in asked}) == len(asked) == 5
    assert "it fits" in told(replace(plan, room=plan.most), settings)


HOLDER = """
import subprocess, sys
held = b"x" * 1_200_000_000
print(subprocess.run(sys.argv[1:], capture_output=True, text=True, check=True).stdout)
"""


@pytest.mark.skipif(not os.path.exists(STATUS), reason="the system has no /proc")
def test_the_memory_of_who_started_it_is_not_counted():
    ask = "from fedsvd.machine import resident; print(resident())"
    command = [sys.executable, "-c", HOLDER, sys.executable, "-c", ask]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 2**20 < int(done.stdout) < 10**9


BAD = [
    (["model.name=nowhere/at/all"], r"^model\.name: "),
    (["adapter.targets=[nothing]"], r"^adapter\.targets: "),
    (["adapter.rank=4000"], r"^adapter\.rank: "),
    (["adapter=pissa", "model.dtype=bfloat16"], r"^adapter: 'pissa' is not allowed"),
    (["strategy=fedex", "model.dtype=bfloat16"], r"^strategy: .*changes frozen weights"),
    (["partition=own", "data.public_size=50"], r"^(partition|privacy)"),
    (["attack=label_flip", "attack.clients=[0]"], r"^attack: "),
    (["start=public"], r"^data\.public: 0"),
    (["model.attention=flash_attention_2"], r"^model\.attention: "),
    (["device=cuda:9"], r"^device: "),
    (["task=choice"], r"^data\.endings: None"),
]


@pytest.mark.parametrize(("more", "why"), BAD, ids=[" ".join(more) for more, _ in BAD])
def test_what_a_run_would_refuse_a_plan_refuses_by_its_key(tmp_path, more, why):
    with pytest.raises(InputError, match=why) as error:
        make_plan(compose_settings(*overrides(tmp_path), *more))
    assert "\n" not in str(error.value)


def test_weights_that_cannot_be_quantised_are_refused(tmp_path, monkeypatch):
    given = overrides(tmp_path, "gpt2", "model.quantization=nf4")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match=r"^model\.quantization: 'nf4' needs the package"):
        make_plan(compose_settings(*given))
    monkeypatch.undo()
    pytest.importorskip("bitsandbytes", reason="needs the optional package bitsandbytes")
    with pytest.raises(InputError, match=r"^model\.quantization: 'nf4' is not allowed with"):
        make_plan(compose_settings(*given))


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["model.name=nowhere/at/all", "--plan"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: model.name: folder 'nowhere/at/all' does not exist")
    assert (said.out, list(tmp_path.iterdir())) == ("", [])
