"""Real runs, cut short: of the default model, and of a small BERT where the model does not matter."""

import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

import fedsvd
from fedsvd.checkpoints.checkpoint import read_checkpoint
from fedsvd.client.worker import get_worker
from fedsvd.run import config_folder, execute
from tests import tiny
from tests.conftest import SMALL, compose_settings

WIDTH, LAYERS = 32, 4  # of the small BERT: query and value of two blocks


def run(folder, *overrides):
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose("config", [*SMALL, *overrides])
    folder.mkdir(parents=True)
    return execute(config, folder, list(overrides))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return tiny.make_inputs(tmp_path_factory.mktemp("small"), width=WIDTH)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "fedsvd"
    before = {
        n: p.detach().clone()
        for n, p in get_worker(compose_settings(*SMALL)).model.named_parameters()
        if not p.requires_grad
    }
    return folder, run(folder), before


def test_the_run_folder_and_summary(done):
    folder, summary, _ = done
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "config.yaml", "metrics.jsonl", "summary.json", "privacy.json", "checkpoints", "adapter",
        "classifier", "report.html", "run.log", "journal.jsonl",
    }  # fmt: skip
    told = json.loads((folder / "summary.json").read_text())
    keys = {
        "strategy", "adapter", "task", "model", "seed", "rounds_completed", "accuracy", "loss",
        "best_accuracy", "epsilon_target", "epsilon_max", "delta", "bytes_up", "bytes_down",
        "seconds", "state_digest", "noise_source",
    }  # fmt: skip
    assert keys <= set(told)
    assert told["noise_source"] == "from the run's seed: repeatable, do not publish this model"
    assert told["noise_source"] in (folder / "adapter" / "README.md").read_text()
    assert told["state_digest"] == summary["state_digest"]
    assert told["rounds_completed"] == 2
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [x["round"] for x in lines] == [0, 1, 2]
    page = (folder / "report.html").read_text()
    assert page.count("<svg") >= 4
    assert "http" not in page.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("https://matplotlib.org", "").replace("http://creativecommons.org", "")


def test_no_client_exceeds_its_budget_and_the_ledger_counts_every_step(done):
    folder, _, _ = done
    ledger = json.loads((folder / "privacy.json").read_text())
    assert 0 < ledger["epsilon_max"] <= 1.0
    assert sum(c["steps"] for c in ledger["clients"]) == 2 * 3 * 2
    for client in ledger["clients"]:
        assert client["epsilon"] <= 1.0
        assert client["rounds"] <= client["rounds_bound"] == 1


def test_what_is_frozen_is_bit_identical_after_a_run(done):
    _, _, before = done
    worker = get_worker(compose_settings(*SMALL))
    after = dict(worker.model.named_parameters())
    assert len(before) > 100
    for name, value in before.items():
        if ".lora_A." in name:  # FedSVD's server rewrites A; clients do not train it
            continue
        assert torch.equal(after[name], value), name


def test_the_same_config_gives_the_same_bits_and_another_seed_does_not(done, small, tmp_path):
    _, summary, _ = done
    assert run(tmp_path / "a")["state_digest"] == summary["state_digest"]
    zero, one = (tiny.run(tmp_path / f"s{k}", small, f"seed={k}")["state_digest"] for k in (0, 1))
    assert zero != one


def test_bytes_are_those_of_what_the_strategy_sends(done, small, tmp_path):
    _, summary, _ = done
    A, B, head = 12 * 8 * 384 * 4, 12 * 384 * 8 * 4, 2 * 384 * 4
    slack = 25 * 160  # the header that NumPy's format puts before each array
    replies = 2 * 3
    assert 0 <= summary["bytes_up"] - replies * (B + head) < replies * slack
    assert 0 <= summary["bytes_down"] - replies * (A + B + head) < replies * slack
    ffa = tiny.run(tmp_path / "ffa", small, "strategy=ffa", "rounds=2", "adapter.rank=8")
    B, head, slack = LAYERS * WIDTH * 8 * 4, 2 * WIDTH * 4, (LAYERS + 1) * 160
    assert 0 <= ffa["bytes_down"] - replies * (B + head) < replies * slack


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=fedavg"],
        ["privacy=none"],
        ["adapter=none"],
        ["model.head=frozen_random"],
        ["strategy._target_=flwr.serverapp.strategy.FedTrimmedAvg"],
        ["clients.participation=poisson", "rounds=3"],
        ["privacy=client_level"],
        ["privacy=client_level", "strategy=ffa", "privacy.clip_quantile=0.5"],
        [
            "privacy=client_level",
            "strategy=fedavg",
            "privacy.threat_model=trusted_server",
            "privacy.secure_noise=true",
            "clients.participation=poisson",
            "rounds=3",
        ],
        ["privacy.public_counts=true", "privacy.clipping=per_layer"],
        ["privacy.clipping=automatic", "privacy.secure_noise=true"],
    ],
    ids=lambda o: " ".join(o),
)
def test_variants_train(overrides, small, tmp_path):
    given = [o for o in small if overrides != ["adapter=none"] or not o.startswith("adapter.")]
    summary = tiny.run(tmp_path / "x", given, "rounds=2", *overrides)
    initial = get_worker(compose_settings(*given, "rounds=2", *overrides)).initial
    assert summary["state_digest"] != initial.digest()
    assert np.isfinite(summary["loss"])
    assert summary["failures"] == 0


@pytest.mark.parametrize(
    ("model", "chosen"),
    [
        ("default", ["adapter.init=kaiming"]),
        ("small", ["adapter.init=pissa"]),
        ("small", ["strategy=fedex"]),
        ("small", ["strategy=flora", "adapter.init=pissa", "rounds=3"]),
    ],
    ids=lambda v: v if isinstance(v, str) else " ".join(v),
)
def test_adapter_and_classifier_give_the_runs_outputs(model, chosen, small, tmp_path):
    from peft import PeftModel

    from fedsvd.models.backbone import load_backbone

    overrides = ["rounds=2", "training.lr=5", "privacy=none", *chosen]
    if model == "default":
        run(tmp_path / "x", *overrides)
    else:
        tiny.run(tmp_path / "x", small, *overrides)
    settings = compose_settings(*(SMALL if model == "default" else small), *overrides)
    worker = get_worker(settings)
    state = read_checkpoint(tmp_path / "x" / "checkpoints" / "last.safetensors")
    worker.model.write(state)
    rows = [int(r) for r in worker.task.test[:8]]
    expected = worker.outputs(rows)

    batch = worker.tokens.batch(rows)
    plain = load_backbone(settings.model)
    loaded = PeftModel.from_pretrained(load_backbone(settings.model), tmp_path / "x" / "adapter")
    with torch.inference_mode():
        ours = worker.model.backbone(**batch.inputs).last_hidden_state
        theirs = loaded.eval()(**batch.inputs).last_hidden_state
        bare = plain(**batch.inputs).last_hidden_state
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert float((ours - bare).norm()) > 1e-3  # the adapter does something

    classifier = fedsvd.load(tmp_path / "x")
    texts = [worker.task.texts[r] for r in rows]
    torch.testing.assert_close(classifier.logits(texts), expected, rtol=1e-3, atol=1e-4)
    assert classifier.predict(texts[:2]) == [
        worker.task.label_names[int(i)] for i in expected[:2].argmax(1)
    ]


def test_a_run_ends_when_no_client_may_take_part(small, tmp_path):
    summary = tiny.run(
        tmp_path / "x", small, "rounds=6", "clients.max_rounds=1", "recorder.evaluate_every=9"
    )
    assert summary["rounds_completed"] == 2
    assert summary["ended"] == "no client may take part in another round"
    assert np.isfinite(summary["loss"])
    assert summary["epsilon_max"] <= 1


def test_given_noise_states_its_cost_and_is_not_exceeded(small, tmp_path):
    summary = tiny.run(
        tmp_path / "x", small, "privacy.noise_multiplier=0.9", "privacy.epsilon=null", "rounds=3",
        "clients.participation=uniform",
    )  # fmt: skip
    ledger = json.loads((tmp_path / "x" / "privacy.json").read_text())
    assert {c["noise_multiplier"] for c in ledger["clients"]} == {0.9}
    assert 0 < summary["epsilon_max"] <= max(c["epsilon_bound"] for c in ledger["clients"])
    assert summary["epsilon_target"] is None


def test_tensorboard_writes_events(small, tmp_path):
    tiny.run(tmp_path / "x", small, "recorder=tensorboard", "rounds=1")
    assert list((tmp_path / "x" / "tensorboard").glob("events*"))


def test_a_client_that_fails_is_left_out_and_charged_what_it_took(small, tmp_path, monkeypatch):
    from fedsvd.client import app

    real = app.train_locally

    def sometimes(worker, state, client, round, steps, *more):
        result = real(worker, state, client, round, steps, *more)
        if client == 2:
            del steps[1:]  # as if it had failed in its second step
            raise RuntimeError("out of memory")
        return result

    monkeypatch.setattr(app, "train_locally", sometimes)
    given = ["rounds=2", "training.local_steps=2"]
    summary = tiny.run(tmp_path / "x", small, *given)
    assert summary["failures"] == 1
    ledger = json.loads((tmp_path / "x" / "privacy.json").read_text())
    assert ledger["clients"][2]["steps"] == 1
    lines = [json.loads(x) for x in (tmp_path / "x" / "metrics.jsonl").read_text().splitlines()]
    assert {"2": "failed: RuntimeError: out of memory"} in [x.get("failed") for x in lines]
