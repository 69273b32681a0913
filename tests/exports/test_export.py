"""Every adapter trains, and what it exports computes the same in a process without this package."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertConfig, BertModel, GPT2Config, GPT2Model

from fedsvd.adapters import Eva, Inputs, Olora, Pissa, lora
from fedsvd.experiment import prepare
from fedsvd.exports.export import export_adapter, export_rest
from fedsvd.exports.load import load
from fedsvd.models.backbone import load_tokenizer
from fedsvd.rounds.attempt import one_round
from fedsvd.settings import AdapterSettings
from fedsvd.strategies.build import build_strategy
from tests.conftest import TINY, compose_settings

# adapter and options; strategy; the folder that the export is in
VARIANTS = {
    "lora": (["adapter=lora", "adapter.init=gaussian"], "fedsvd", "adapter"),
    "pissa": (["adapter=pissa", "adapter.niter=4"], "fedsvd", "adapter"),
    "milora": (["adapter=milora"], "ffa", "adapter"),
    "olora": (["adapter=olora", "adapter.alpha=4"], "fedsvd", "adapter"),
    "eva": (["adapter=eva", "adapter.calibration=20", "data.public=20"], "fedsvd", "adapter"),
    "eora": (["adapter=eora", "adapter.compression=prune", "data.public=20"], "fedsvd", "merged"),
    "dct": (["adapter=dct"], "fedex", "adapter"),
    "hadamard": (["adapter=hadamard"], "fedsvd_refresh", "adapter"),
    "imbalanced": (["adapter=imbalanced"], "fedavg", "adapter"),
    "rslora": (
        ["adapter=pissa", "adapter.rslora=true", "adapter.ranks={query: 2}"],
        "fedsvd",
        "adapter",
    ),
    "rslora_flora": (["adapter=lora", "adapter.rslora=true"], "flora", "adapter"),
    "dora": (["adapter=dora"], "fedsvd", "adapter"),
    "dora_flora": (["adapter=dora", "adapter.magnitude=renormalised"], "flora", "adapter"),
    "lora_xs": (["adapter=lora_xs"], "fedavg", "adapter"),
    "lora_ga": (["adapter=lora_ga", "adapter.rank=4"], "fedsvd", "adapter"),
    "lora_sb": (["adapter=lora_sb", "adapter.step=sign"], "fedsb", "adapter"),
    "svfit": (["adapter=svfit"], "fedavg", "adapter"),
    "sorsa": (["adapter=sorsa"], "fedavg", "adapter"),
    "effort": (["adapter=effort"], "fedavg", "adapter"),
    "kronecker": (["adapter=kronecker"], "fedavg", "adapter"),
    "cayley": (["adapter=cayley"], "geometric_median", "adapter"),
    "etf": (["adapter=lora", "model.head=etf", "model.temperature=0.07"], "ffa", "adapter"),
    "equiangular": (["adapter=lora", "model.head=equiangular"], "ffa", "adapter"),
    "grassmann": (
        ["adapter=lora", "model.head=grassmann", "model.normalize=false"],
        "fedsvd",
        "adapter",
    ),
    "grassmann_fixed": (
        [
            "adapter=lora",
            "model.head=grassmann_fixed",
            "model.temperature=0.04",
            "model.normalize=false",
        ],
        "fedsvd",
        "adapter",
    ),
    "two_layer": (
        ["adapter=lora", "model.head_form=two_layer", "model.head_bias=true", "model.scale=30"],
        "fedsvd",
        "adapter",
    ),
    "patterns": (
        [
            "adapter.targets=[all]",
            "adapter.ranks={encoder.layer.0.*: 2, key: 1}",
        ],
        "fedsvd",
        "adapter",
    ),
}
# GPT-2's layers are Conv1D, which store their weights transposed.
DECODER = {
    "pissa": (["adapter=pissa"], "fedsvd", "adapter"),
    "eora": (["adapter=eora", "data.public=20"], "fedsvd", "merged"),
    "dora": (["adapter=dora"], "fedsvd", "adapter"),
    "sorsa": (["adapter=sorsa"], "fedavg", "adapter"),
    "kronecker": (["adapter=kronecker"], "fedavg", "adapter"),
}
RANK = ["adapter.rank=4", "adapter.targets=[query,value,intermediate.dense]"]


def saved(folder, cls, config, **more):
    """A folder with a tiny random model, the default model's tokeniser, and texts."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cls(config, **more).save_pretrained(folder)
    load_tokenizer(compose_settings().model).save_pretrained(folder)
    g = torch.Generator().manual_seed(1)
    words = [" ".join(f"w{i}" for i in torch.randint(40, (7,), generator=g)) for _ in range(120)]
    lines = [f"{text},{i % 2}" for i, text in enumerate(words)]
    (folder / "train.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    return folder


def small_bert(folder):
    config = BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    return saved(folder, BertModel, config, add_pooling_layer=False)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return small_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    config = GPT2Config(
        vocab_size=30522, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return saved(tmp_path_factory.mktemp("gpt2"), GPT2Model, config)


def start(backbone, *overrides):
    settings = compose_settings(
        *TINY, "model=custom", f"model.name={backbone}", "model.max_length=32",
        "model.head_init=random", "data=folder", f"data.path={backbone}",
        "data.labels=['0','1']", "data.public_size=90", "rounds=2", "clients.number=2",
        "clients.per_round=2", *overrides,
    )  # fmt: skip
    return prepare(settings, build_strategy(settings.strategy))


ALONE = textwrap.dedent("""
    import json, sys, warnings, pathlib, torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModel
    from peft import PeftModel

    warnings.simplefilter("error", UserWarning)
    backbone, top = sys.argv[1:]
    for run in sorted(pathlib.Path(top).iterdir()):
        inputs = load_file(run / "inputs.safetensors")
        if (run / "merged").exists():
            model = AutoModel.from_pretrained(run / "merged")
        else:
            model = AutoModel.from_pretrained(backbone)
            model = PeftModel.from_pretrained(model, run / "adapter")
        with torch.inference_mode():
            hidden = model.eval()(**inputs).last_hidden_state
        told = json.loads((run / "classifier" / "classifier.json").read_text())
        parts = load_file(run / "classifier" / "head.safetensors")
        last = parts.get("head.out_proj.weight")
        head = parts.get("head.weight", parts.get("head.subspaces"))
        mask = inputs["attention_mask"]
        if told["pooling"] == "mean":
            x = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        else:
            x = hidden[torch.arange(len(mask)), mask.sum(1) - 1]
        if told["normalize"] or (head is not None and head.ndim == 3):
            x = x / x.norm(dim=1, keepdim=True)
        if last is not None:
            z = torch.tanh(x @ parts["head.dense.weight"].mT + parts["head.dense.bias"])
            logits = z @ last.mT + parts["head.out_proj.bias"]
        elif head.ndim == 2:
            logits = x @ head.mT
        else:
            logits = torch.stack([(x @ S.mT).norm(dim=1) for S in head], 1)
        found = {"hidden": hidden.contiguous(), "logits": told["scale"] * logits}
        save_file(found, run / "found.safetensors")
    assert "fedsvd" not in sys.modules
""")


@pytest.mark.parametrize(("family", "variants"), [("backbone", VARIANTS), ("decoder", DECODER)])
def test_what_is_exported_computes_the_same_in_a_process_without_fedsvd(
    family, variants, request, tmp_path
):
    backbone, expected = request.getfixturevalue(family), {}
    own = RANK if family == "backbone" else [*RANK[:1], "adapter.targets=[query,c_fc]"]
    if family == "decoder":
        own.append("model.pooling=last")
    lr = 3 if family == "backbone" else 1  # at 3 PiSSA's B grows to 90, and rounding with it
    for name, (overrides, strategy, folder) in variants.items():
        run = start(
            backbone, *([] if name == "patterns" else own), *overrides, f"strategy={strategy}",
            "privacy=none", f"training.lr={lr}", "training.clip_norm=null",
        )  # fmt: skip
        first = run.worker.initial.digest()
        for number in (1, 2):
            assert one_round(run, number)["failed"] == {}, name
        assert run.state.digest() != first, name
        out, worker = tmp_path / "runs" / name, run.worker
        assert export_adapter(worker, run.state, out) == folder, name
        export_rest(worker, run.state, out, folder)
        inputs = worker.tokens.batch(worker.task.validation[:6].tolist()).inputs
        save_file(inputs, out / "inputs.safetensors")
        with torch.inference_mode():
            hidden = worker.model.backbone(**inputs).last_hidden_state
        texts = [worker.task.texts[i] for i in worker.task.validation[:6]]
        expected[name] = (hidden, worker.outputs(worker.task.validation[:6].tolist()), texts)
        if name in ("equiangular", "etf", "grassmann_fixed"):  # every client derives the head
            assert not run.state.extra
            assert not any(p.requires_grad for p in worker.model.head.parameters())
        if name.startswith("rslora"):
            config = json.loads((out / "adapter" / "adapter_config.json").read_text())
            assert config["use_rslora"]
            if name == "rslora":  # twice the rank, as the start is subtracted; scales 8 / sqrt r
                assert {config["r"], *config["rank_pattern"].values()} == {4, 8}
                found = [config["lora_alpha"], *config["alpha_pattern"].values()]
                assert found == pytest.approx([8 * 2**0.5] * len(found))
        told = json.loads((out / "classifier" / "classifier.json").read_text())
        assert told["merged"] == (folder == "merged")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(backbone), str(tmp_path / "runs")],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    bare = AutoModel.from_pretrained(backbone).eval()
    for name, (hidden, logits, texts) in expected.items():
        out = tmp_path / "runs" / name
        found = load_file(out / "found.safetensors")
        for key, ours in (("hidden", hidden), ("logits", logits)):
            torch.testing.assert_close(
                found[key], ours, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
        with torch.inference_mode():
            plain = bare(**load_file(out / "inputs.safetensors")).last_hidden_state
        assert float((hidden - plain).norm()) > 1e-3, name  # the adapter does something
        torch.testing.assert_close(load(out).logits(texts), logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["dora", "svfit", "lora_xs", "sorsa", "kronecker", "cayley"])
@pytest.mark.parametrize("unit", ["dp_sgd", "client_level"])
def test_under_privacy_all_that_trains_gets_noise_and_nothing_else_travels(backbone, name, unit):
    run = start(
        backbone, *RANK, f"adapter={name}", "strategy=fedavg", f"privacy={unit}", "rounds=2",
        "privacy.epsilon=5",
    )  # fmt: skip
    before = run.state.tensors()
    metrics = one_round(run, 1)
    assert metrics["failed"] == {}
    after = run.state.tensors()
    assert set(after) == set(before)
    assert set(run.worker.model.trainable()) == set(before)
    # Noise reaches every entry, or the step would not be the mechanism's. It lies on a grid of about
    # a thousandth of its deviation, so some entries of many thousands get a noise of zero.
    assert all(float((after[n] != before[n]).double().mean()) > 0.99 for n in before)
    size = sum(t.numel() * 4 for t in before.values())
    assert 0 <= metrics["bytes_up"] - 2 * size < 2 * 140 * len(before)


@pytest.mark.parametrize(
    "adapter", [Pissa(), Pissa(niter=4), Olora(), Eva()], ids=lambda a: type(a).__name__
)
def test_the_start_does_not_depend_on_the_number_of_threads(adapter):
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(wide(adapter).digest())
        assert torch.get_num_threads() == threads
    assert found[0] == found[1]


def wide(adapter):
    """The first state on a layer large enough for a library to use several threads."""
    g = torch.Generator().manual_seed(0)
    holder = torch.nn.ModuleDict({"query": torch.nn.Linear(300, 300, bias=False)})
    holder["query"].weight.data = torch.randn(300, 300, generator=g)
    settings = AdapterSettings("lora", rank=8, targets=("query",))

    def measure(names):
        x = torch.randn(400, 300, generator=g).double()
        return {n: Inputs(x.mT @ x / 400, x.mean(0), 400) for n in names}

    return lora.attach(holder, settings, 0, ("B",), measure, adapter).initial
