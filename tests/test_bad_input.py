"""A corpus of wrong inputs: each is one line that names the key or file and what is allowed."""

import copy
import json
import re

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file, save, save_file

from fedsvd.checkpoints.resuming import check_folder
from fedsvd.config import from_config
from fedsvd.data.task import load_task
from fedsvd.errors import InputError
from fedsvd.experiment import prepare
from fedsvd.exports.load import load
from fedsvd.models.backbone import load_backbone, load_tokenizer
from fedsvd.run import config_folder, main
from fedsvd.settings import DataSettings, EngineSettings, ModelSettings, StrategySettings
from fedsvd.settings.flower import PACKAGE as FLOWER
from fedsvd.strategies.build import build_strategy
from fedsvd.strategies.use import check_use
from tests.conftest import compose_settings
from tests.models.saved import change_config, change_weights, save_model, save_words
from tests.models.test_reported import prefixed, without
from tests.tiny import WORDS, make_inputs


@pytest.fixture(scope="module")
def base():
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return OmegaConf.to_container(compose("config"), resolve=True)


SETTINGS = [
    ({"seed": -1}, "seed: -1 is not allowed; it must be a whole number of at least 0"),
    ({"seed": "x"}, "seed: 'x' is not allowed; it must be a whole number"),
    ({"seed": None}, "seed: None is not allowed; it must be a whole number"),
    ({"rounds": 0}, "rounds: 0 is not allowed"),
    ({"rounds": 2.5}, "rounds: 2.5 is not allowed; it must be a whole number"),
    ({"rounds": True}, "rounds: True is not allowed; it must be a whole number"),
    ({"device": "gpu"}, "device: 'gpu' is not allowed"),
    ({"clients": 3}, "clients: 3 is not allowed; it must be a group of settings"),
    ({"clients.number": 0}, "clients.number: 0"),
    ({"clients.per_round": 0}, "clients.per_round: 0"),
    ({"clients.per_round": 9}, "clients.per_round: 9 is not allowed; it must be at most"),
    ({"clients.participation": "balance"}, "(did you mean 'balanced'?)"),
    ({"clients.weighting": "example"}, "(did you mean 'examples'?)"),
    ({"clients.weighting": "examples"}, "clients.weighting: 'examples' is not allowed"),
    ({"clients.max_rounds": 0}, "clients.max_rounds: 0"),
    ({"clients.participation": "dpp"}, "clients.features: None is not allowed; it must be public"),
    ({"clients.features": [[1.0]]}, "it must be clients.number = 6 rows of as many numbers each"),
    ({"clients.features": [[1], [1], [1], [1], [1], [1, 2]]}, "6 rows of [1, 2] numbers"),
    ({"clients.features": [[1], [1], [1], [1], [0], [1]]}, "not all 0 for client 4, who would"),
    ({"clients.features": [[1], [float("nan")], [1], [1], [1], [1]]}, "clients.features: [nan]"),
    (
        {"clients.features": [["a"]] * 6},
        "clients.features: 'a' is not allowed; it must be a number",
    ),
    ({"clients.features": 3}, "clients.features: 3 is not allowed; it must be a list"),
    (
        {"clients.participation": "dpp", "clients.features": [[1, 0], [0, 1]] * 3},
        "clients.features: 'of rank 2' is not allowed; it must be of rank clients.per_round = 3",
    ),
    ({"clients.numbr": 3}, "clients.numbr: 'numbr' is not allowed (did you mean 'number'?)"),
    ({"training.lr": -1}, "training.lr: -1.0 is not allowed; it must be a number above 0"),
    ({"training.lr": float("inf")}, "training.lr: inf"),
    ({"training.lr": float("nan")}, "training.lr: nan"),
    ({"training.lr": "fast"}, "training.lr: 'fast' is not allowed; it must be a number"),
    ({"training.schedule": "cosine"}, "training.schedule: 'cosine'"),
    ({"training.momentum": 1}, "training.momentum: 1.0 is not allowed; it must be in [0, 1)"),
    ({"training.weight_decay": -1}, "training.weight_decay: -1.0"),
    ({"training.local_steps": 0}, "training.local_steps: 0"),
    ({"training.batch_size": 0}, "training.batch_size: 0"),
    ({"training.clip_norm": 0}, "training.clip_norm: 0.0"),
    ({"training.precision": "fp16"}, "training.precision: 'fp16' is not allowed"),
    ({"training.factors": "BA"}, "training.factors: 'BA' is not allowed"),
    *(
        (
            {"training.microbatch_tokens": value},
            f"training.microbatch_tokens: {value!r} is not "
            "allowed; it must be auto, or a whole number",
        )
        for value in (0, -1, 1.5, "automatic")
    ),
    ({"training.cache": "on"}, "training.cache: 'on' is not allowed; it must be auto, off, or"),
    ({"training.cache": -1}, "training.cache: '-1'"),
    ({"model.pooling": "men"}, "(did you mean 'mean'?)"),
    ({"model.head": "frozen"}, "model.head: 'frozen' is not allowed"),
    ({"model.scale": 0}, "model.scale: 0.0"),
    ({"model.dropout": 1.5}, "model.dropout: 1.5"),
    ({"model.max_length": 1}, "model.max_length: 1"),
    (
        {"model.trust_remote_code": True},
        "model.trust_remote_code: 'trust_remote_code' is not allowed",
    ),
    ({"adapter.name": "none", "model.head": "frozen_random"}, "nothing would train"),
    ({"adapter.rank": 0}, "adapter.rank: 0"),
    ({"adapter.rank": -4}, "adapter.rank: -4"),
    ({"adapter.rank": 2.5}, "adapter.rank: 2.5 is not allowed; it must be a whole number"),
    ({"adapter.alpha": 0}, "adapter.alpha: 0.0"),
    ({"adapter.init": "kaming"}, "(did you mean 'kaiming'?)"),
    ({"adapter.targets": []}, "adapter.targets: [] is not allowed"),
    ({"adapter.targets": {"a": 1}}, "adapter.targets: {'a': 1} is not allowed; it must be a list"),
    ({"adapter.layers": 0}, "adapter.layers: '0' is not allowed; it must be null (all blocks)"),
    ({"adapter.layers": "upper"}, "adapter.layers: 'upper'"),
    ({"adapter.layers": 1.5}, "adapter.layers: '1.5'"),
    ({"adapter.dropout": -0.1}, "adapter.dropout: -0.1"),
    ({"strategy._target_": None}, "strategy._target_: None is not allowed"),
    ({"strategy._target_": "Mine"}, "it must be the import path of a class"),
    ({"privacy.unit": "examples"}, "(did you mean 'example'?)"),
    ({"privacy.epsilon": 0}, "privacy.epsilon: 0.0"),
    ({"privacy.epsilon": None}, "privacy.epsilon: None is not allowed"),
    ({"privacy.noise_multiplier": 1}, "null while privacy.epsilon=1 is set"),
    ({"privacy.delta": 0}, "privacy.delta: 0.0"),
    ({"privacy.delta": 1}, "privacy.delta: 1.0"),
    ({"privacy.clip_norm": -1}, "privacy.clip_norm: -1.0"),
    ({"privacy.clipping": "flaat"}, "(did you mean 'flat'?)"),
    ({"privacy.accountant": "rpd"}, "privacy.accountant: 'rpd' is not allowed"),
    ({"privacy.threat_model": "trusted_server"}, "privacy.threat_model: 'trusted_server'"),
    ({"privacy.clip_quantile": 0.5}, "privacy.clip_quantile: 0.5 is not allowed; it must be null"),
    ({"engine.name": "rya"}, "(did you mean 'ray'?)"),
    ({"engine.threads": 0}, "engine.threads: 0"),
    ({"recorder.name": "tensorbord"}, "(did you mean 'tensorboard'?)"),
    ({"recorder.evaluate_every": 0}, "recorder.evaluate_every: 0"),
    ({"recorder.evaluate_examples": 0}, "recorder.evaluate_examples: 0"),
    (
        {"recorder.answers": -1},
        "recorder.answers: -1 is not allowed; it must be a whole number of at least 0, or null",
    ),
    ({"recorder.answers": 0.5}, "recorder.answers: 0.5 is not allowed; it must be a whole number"),
    ({"recorder.answer_tokens": 0}, "recorder.answer_tokens: 0"),
    ({"data.limit_evaluation": 0}, "data.limit_evaluation: 0"),
    ({"recorder.checkpoint_every": 0}, "recorder.checkpoint_every: 0"),
    (
        {"recorder.keep": 0},
        "recorder.keep: 0 is not allowed; it must be a whole number of at least 1",
    ),
    ({"partition.name": "dirichlt"}, "(did you mean 'dirichlet'?)"),
    ({"partition.alpha": 0}, "partition.alpha: 0.0"),
    ({"partition.min_examples": -1}, "partition.min_examples: -1"),
    ({"data.validation": 0}, "data.validation: 0.0 is not allowed; it must be a share"),
    ({"data.test": 0.95}, "data.test: 0.95 is not allowed; it must be such that"),
    ({"data.limit": 0}, "data.limit: 0"),
    ({"data.text": []}, "data.text: [] is not allowed"),
    ({"data.text": ["a", "b", "c"]}, "one column, or two for sentence pairs"),
    ({"faults.kind": "naan"}, "(did you mean 'nan'?)"),
    ({"faults.rate": 0.3}, "faults.rate: 0.3 is not allowed; it must be 0, or choose"),
    ({"datta": {}}, "datta: 'datta' is not allowed (did you mean 'data'?)"),
    (
        {"data.label_type": "index"},
        "data.label_type: 'index' is not allowed (did you mean 'indices'?)",
    ),
    (
        {"data.labels": ["a", "a "]},
        "data.labels: ['a', 'a '] is not allowed; it must be without blanks",
    ),
    ({"data.labels": ["a", ""]}, "without blanks at the ends, as of ''"),
    ({"data.splits": {"dev": "train"}}, "data.splits: 'dev' is not allowed"),
    (
        {"data.splits": {"all": "a", "train": "b"}},
        "it must be either all, which is split here, or the",
    ),
]


@pytest.mark.parametrize(
    ("change", "message"), SETTINGS, ids=lambda v: getattr(v, "__name__", str(v))[:40]
)
def test_settings(change, message, base):
    config = copy.deepcopy(base)
    for key, value in change.items():
        *above, last = key.split(".")
        inner = config
        for part in above:
            inner = inner[part]
        inner[last] = value
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        from_config(config)
    assert "\n" not in str(caught.value)


GOOD = "".join(f"text {i},{i % 2}\n" for i in range(20))
CSV = [
    (b"", "bad.csv: is empty"),
    (b"\n\n", "bad.csv: is empty"),
    (b"text,label\n", "bad.csv: no rows"),
    (b"txt,label\na,0\n", "no column 'text' (data.text) (did you mean 'txt'?); it has txt, label"),
    (b"text,lable\na,0\n", "no column 'label' (data.label) (did you mean 'lable'?)"),
    (b"text,label,text\na,0,b\n", "column 'text' is there twice"),
    (b"text,label\n,0\n", "line 2: column 'text' holds no text"),
    (b"text,label\n  ,0\n", "line 2: column 'text' holds no text"),
    (b"text,label\na,\n", "line 2: column 'label' holds no label but ''"),
    (b"text,label\na\n", "line 2 has 1 fields, the header 2"),
    (b"text,label\na, b,0\n", "line 2 has 3 fields, the header 2; texts with commas need quotes"),
    (b'text,label\n"a,0\nb,1\n', "is a quote left open?"),
    (b'text,label\n"a"b,0\n', "line 2:"),
    (b"text,label\ncaf\xe9,0\n", "line 2 is not UTF-8 (byte 0xe9)"),
    ("text,label\na,0\n".encode("utf-16"), "holds a NUL byte; is it a text file?"),
    (b"text,label\na\0b,0\n", "line 2 holds a NUL byte"),
    (b"\x80\x04\x95pickle", "is not UTF-8"),
    (b"PK\x03\x04\0\0", "NUL byte"),
    (b"text,label\n" + b"x" * (1 << 21) + b",0\n", "line 2 is longer than 1048576 bytes"),
    (b"text,label\na,0\nb,0\n", "column 'label' holds 1 label; need 2"),
    (b"text,label\n" + b"".join(b"t%d,%d\n" % (i, i) for i in range(1100)), "more than 1000"),
    (b"text;label\na;0\n", "it has text;label (separated by ';'?"),
    (b"text,label\na,neg\nb,Neg\n", "line 2: column 'label' holds 'neg', which differs from 'Neg'"),
    (
        b"text,label\na,neg\nb,neg \n",
        "line 3: column 'label' holds 'neg ', which differs from 'neg'",
    ),
    (
        b"text,label\na, neg\nb,pos\n",
        "line 2: column 'label' holds ' neg', with blanks at its ends",
    ),
    (
        b"text,label\na,0.5\nb,3.0\n",
        "line 2: column 'label' holds numbers, as 0.5; regression is not",
    ),
    (b"text,label\na,nan\nb,pos\n", "line 2: column 'label' holds 'nan', a missing label"),
    (b"text,label\na,  \nb,pos\n", "line 2: column 'label' holds no label but '  '"),
    ("text,label\na,0\n".encode("utf-16"), "it starts as UTF-16 does; save it as UTF-8"),
    (b"\x1f\x8b\x08\0", "it starts as gzip does; call it .gz"),
]
JSONL = [
    (b"", "bad.jsonl: is empty"),
    (b"{}\n", "no column 'text'"),
    (b"[1, 2]\n", "line 1 is not a JSON object"),
    (b'{"text": "a", "label": 0\n', "line 1 is not JSON"),
    (b'{"text": "a", "label": 0}\n{"text": "b"}\n', "line 2: no 'label' (data.label)"),
    (b'{"text": 3, "label": 0}\n', "line 1: column 'text' holds no text"),
    (b'{"text": ["a"], "label": 0}\n', "line 1: column 'text' holds no text"),
    (b'{"text": null, "label": 0}\n', "line 1: column 'text' holds no text"),
    (b'{"text": "a", "label": null}\n', "holds no label but None"),
    (b'{"text": "a", "label": NaN}\n', "holds no label but nan"),
    (b'{"text": "a", "label": {"x": 1}}\n', "holds no label but {'x': 1}"),
    (b'{"text": "a", "text": "b", "label": 0}\n', "a key is there twice"),
    (b'{"a":' * 100_000 + b"\n", "line 1 is not JSON: too deeply nested"),
    (
        b'{"text": "a", "label": [0, 1]}\n',
        "line 1: column 'label' holds no label but [0, 1]; a row has",
    ),
    (
        b'{"text": "a", "label": 2.5}\n',
        "no label but 2.5; a label is a name or a whole number, regress",
    ),
    (b'{"text": "a", "label": Infinity}\n', "line 1: column 'label' holds no label but inf"),
    (b'{"text": "a", "label": " "}\n', "holds no label but ' '; the label is missing"),
    (b'{"text": NaN, "label": 0}\n', "line 1: column 'text' holds no text but nan"),
    (b'{"text": "\\ud800", "label": 0}\n', "line 1: column 'text' holds half a character"),
]
OTHERS = [
    (
        "bad.xlsx",
        b"PK\x03\x04",
        "bad.xlsx: is no file of a known format; it must be one of .csv, .tsv",
    ),
    ("bad", b"text,label\na,0\n", "is no file of a known format"),
    ("bad.parquet", b"text,label\na,0\n", "bad.parquet: cannot be read as Parquet"),
    ("bad.arrow", b"", "bad.arrow: cannot be read as Arrow"),
    ("bad.csv.gz", b"text,label\na,0\n", "bad.csv.gz: cannot be read: Not a gzipped file"),
    (
        "bad.tsv",
        b"text\tlabel\na\tb\t0\n",
        "line 2 has 3 fields, the header 2; texts with tabs need quot",
    ),
    ("bad.json", b'[{"text": "a", "label": 0}, 3]', "row 2 is not a JSON object"),
    ("bad.json", b'[{"text": "a", "label": 0}', "bad.json is not JSON"),
    (
        "bad.json",
        b'[{"text": "a", "label": null}]',
        "row 1: column 'label' holds no label but None",
    ),
]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [("bad.csv", *c) for c in CSV] + [("bad.jsonl", *c) for c in JSONL] + OTHERS,
    ids=lambda v: getattr(v, "__name__", str(v))[:40],
)
def test_data_files(name, data, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_task(DataSettings("mine", path=str(path)), 0)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


FOLDERS = [
    ({}, {}, "holds no .csv or .jsonl file"),
    ({"a.csv": GOOD, "b.csv": GOOD}, {}, "must hold train.csv"),
    (
        {"train.csv": GOOD, "test.csv": "new,7\n"},
        {},
        "label '7' of the test part is not in training",
    ),
    ({"train.csv": GOOD}, {"labels": ("a", "b", "c")}, None),
    ({"train.csv": "a,2\nb,0\n"}, {"labels": ("x", "y")}, "line 2: label '2' is not one of x, y"),
    ({"train.csv": GOOD}, {"filter": {"text": "nothing"}}, "no rows after data.filter"),
    ({"train.csv": GOOD}, {"filter": {"lang": "de"}}, "no column 'lang' (data.filter)"),
    ({"train.csv": GOOD}, {"id": "key"}, "no column 'key' (data.id)"),
    ({"train.csv": "a,0\nb,1\nc,0\n"}, {"id": "label"}, "line 4: its id '0' is that of"),
    ({"train.csv": GOOD, "test.csv": "new,1\n"}, {"id": "label"}, "its id '0' is that of"),
    (
        {"train.csv": GOOD, "train.tsv": GOOD},
        {},
        "train.csv and train.tsv, both for the train part",
    ),
    ({"train.csv": GOOD, "dev.csv": GOOD, "val.csv": GOOD}, {}, "both for the validation part"),
    (
        {"train.csv": GOOD, "validation.xlsx": GOOD},
        {},
        "validation.xlsx: would be the validation part",
    ),
    (
        {"train.csv": GOOD, "TEST.CSV": "new,7\n"},
        {},
        "label '7' of the test part is not in training",
    ),
    ({"a.csv": GOOD, "test.csv": GOOD}, {}, "or a single file; it holds a.csv, test.csv"),
    ({"validation.csv": GOOD}, {}, "the train part is empty; its parts are validation"),
    ({"train-0-of-2.csv": GOOD}, {}, "of its 2 files 1 are here; number 1 is missing"),
    (
        {"train.csv": "a,1\nb,2\n"},
        {"labels": ("1", "2", "3")},
        "can be both; say which with data.label",
    ),
    (
        {"train.csv": "a,x\nb,1\n"},
        {"labels": ("x", "y")},
        "line 2: column 'label' holds the name 'x'",
    ),
    (
        {"train.csv": "a,x\nb,X\n"},
        {"labels": ("x", "y")},
        "line 3: label 'X' is not one of x, y (did",
    ),
    (
        {"train.csv": "a,x\nb,\u00b2\n"},
        {"labels": ("x", "y", "z")},
        "line 3: label '\u00b2' is not one of",
    ),
    (
        {"train.csv": "a,1\nb,--1\n"},
        {"labels": ("x", "y")},
        "line 3: label '--1' is not one of x, y",
    ),
    (
        {"train.csv": GOOD},
        {"label_type": "indices"},
        "data.labels: needed with data.label_type=indices",
    ),
    ({"train.csv": "a,\nb,1\n"}, {"id": "label"}, "line 2: column 'label' holds no label but ''"),
]


@pytest.mark.parametrize(
    ("files", "more", "message"), FOLDERS, ids=lambda v: getattr(v, "__name__", str(v))[:40]
)
def test_data_folders(files, more, message, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text("text,label\n" + text)
    settings = DataSettings("mine", path=str(tmp_path), **more)
    if message is None:  # a label that is named and never occurs is no error
        assert load_task(settings, 0).classes == 3
        return
    with pytest.raises(InputError, match=re.escape(message)):
        load_task(settings, 0)


STRATEGIES = [
    ("nowhere.Mine", {}, "cannot be imported (ModuleNotFoundError"),
    ("fedsvd.strategies.FedSVDD", {}, "did you mean fedsvd.strategies.FedSVD?"),
    ("fedsvd.strategies.fedsvd", {}, "is not a strategy; derive it from"),
    ("fedsvd.strategies.Update", {}, "is not a strategy"),
    ("fedsvd.strategies.Strategy", {}, "lacks the method aggregate"),
    ("os.path.join", {}, "is not a strategy"),
    ("fedsvd.strategies.FedSVD", {"period": 0}, "strategy.period: 0 is not allowed"),
    ("fedsvd.strategies.FedSVD", {"split": "svdd"}, "strategy.split: 'svdd'"),
    ("fedsvd.strategies.FedSVD", {"peroid": 2}, "(did you mean 'period'?)"),
    ("fedsvd.strategies.FedAvg", {"server": {"nam": 1}}, "strategy.server.nam: 'nam'"),
    ("fedsvd.strategies.FedAvg", {"server": 3}, "strategy.server: 3"),
    ("fedsvd.strategies.L21", {"tolerance": 0}, "strategy.tolerance: 0 is not allowed"),
    ("fedsvd.strategies.RobustLowRank", {"over": 0}, "strategy.over: 0 is not allowed"),
    ("fedsvd.strategies.RobustLowRank", {"init": 0}, "strategy.init: 0 is not allowed"),
    ("fedsvd.strategies.RobustLowRank", {"decay": 1}, "strategy.decay: 1 is not allowed"),
    ("fedsvd.strategies.FedAvg", {"server": {"name": "mfca", "lr": 1}}, "(did you mean 'mfac'?)"),
    (
        "fedsvd.strategies.FedAvg",
        {"server": {"name": "mfac", "lr": 1, "window": 0}},
        "strategy.server.window: 0 is not allowed; it must be a whole number of at least 1",
    ),
    (
        "fedsvd.strategies.FedAvg",
        {"server": {"name": "mfac", "lr": 1, "window": 2.5}},
        "strategy.server.window: 2.5",
    ),
    (
        "fedsvd.strategies.FedAvg",
        {"server": {"name": "mfac", "lr": 1, "damping": 0}},
        "strategy.server.damping: 0 is not allowed; it must be a number above 0",
    ),
    (f"{FLOWER}.Strategy", {}, "lacks the method"),
    (f"{FLOWER}.Result", {}, "is not a strategy"),
    (f"{FLOWER}.FedXgbBagging", {}, "aggregates trees of XGBoost"),
    (f"{FLOWER}.FedXgbCyclic", {}, "aggregates trees of XGBoost"),
    (f"{FLOWER}.DifferentialPrivacyServerSideFixedClipping", {}, "use privacy=client_level"),
    (f"{FLOWER}.DifferentialPrivacyClientSideAdaptiveClipping", {}, "no ledger here holds"),
    (f"{FLOWER}.fedopt.FedOpt", {}, "is a base class without a rule of its own"),
    (f"{FLOWER}.FedProxy", {}, "did you mean flwr.serverapp.strategy.FedProx?"),
    (f"{FLOWER}.FedProx", {"proximal": 1}, "strategy.proximal: 'proximal' is not allowed"),
    (f"{FLOWER}.QFedAvg", {"q": 1}, "strategy.client_learning_rate: is missing"),
    (f"{FLOWER}.FedAvg", {"weighted_by_key": "loss"}, "must be 'num-examples' here"),
    (f"{FLOWER}.FedAvg", {"fraction_evaluate": 1.0}, "the server evaluates"),
    (f"{FLOWER}.FedAvg", {"min_train_nodes": 2}, "would wait for ever"),
    (f"{FLOWER}.Bulyan", {"selection_rule": "krum"}, "derive a class of your own"),
    ("flwr.server.strategy.FedProx", {}, "is not a strategy"),
]


@pytest.mark.parametrize(
    ("target", "options", "message"), STRATEGIES, ids=lambda v: getattr(v, "__name__", str(v))[:40]
)
def test_strategies(target, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        build_strategy(StrategySettings(target, options), list(options))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


MODELS = [
    (["adapter.rank=17"], "adapter.rank: 17 is not allowed; it must be at most 16"),
    (["adapter.targets=[qery]"], "no linear layer of the model is called 'qery'"),
    (["data.public_size=null"], "data.public_size: needed under privacy"),
    (["privacy.delta=0.5"], "privacy.delta: 0.5 is not allowed; it must be below 1/n"),
    (["clients.number=50", "partition.min_examples=9"], "is left with"),
    (["model.head_init=texts"], "data.label_texts: what starts from texts needs"),
    (["device=cuda:0"], "device: 'cuda:0' is not allowed"),
    (["model=custom", "model.name=NAN"], "numbers in encoder.layer.0.output.dense.bias that are"),
]


def not_numbers(folder):
    """Return a model's folder with NaN in one of its weights."""
    make_inputs(folder)
    file = folder / "model" / "model.safetensors"
    weights = load_file(file)
    weights["encoder.layer.0.output.dense.bias"][3] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    return folder / "model"


@pytest.mark.parametrize(
    ("change", "message"), MODELS, ids=lambda v: getattr(v, "__name__", str(v))[:40]
)
def test_models_and_plans(change, message, inputs, tmp_path):
    import torch

    if "device=cuda:0" in change and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    if "model.name=NAN" in change:
        change = [*change[:-1], f"model.name={not_numbers(tmp_path)}"]
    settings = compose_settings(*inputs, *change)
    with pytest.raises(InputError, match=re.escape(message)):
        prepare(settings, build_strategy(settings.strategy))


USES = [
    ("FedProx", ["+strategy.proximal_mu=-0.1"], "strategy.proximal_mu: -0.1"),
    ("FedProx", ["+strategy.proximal_mu=nan"], "strategy.proximal_mu: nan"),
    ("QFedAvg", ["+strategy.client_learning_rate=0.8"], "is given every client's loss"),
    ("QFedAvg", ["+strategy.client_learning_rate=3", "privacy=none"], "must be training.lr = 0.8"),
    ("FedYogi", ["+strategy.eta_l=1"], "strategy.eta_l: 1 is not allowed; it must be training.lr"),
    ("FedAdam", ["+strategy.eta=-1"], "strategy.eta: -1 is not allowed; it must be a number above"),
    ("Krum", ["privacy=client_level"], "Krum chooses among clients"),
    ("MultiKrum", ["+strategy.num_nodes_to_select=7"], "at most clients.per_round = 3"),
    ("FedTrimmedAvg", ["privacy=client_level"], "FedTrimmedAvg chooses among clients"),
]


@pytest.mark.parametrize(
    ("name", "change", "message"), USES, ids=lambda v: getattr(v, "__name__", str(v))[:40]
)
def test_uses_of_flowers_strategies(name, change, message, inputs):
    settings = compose_settings(*inputs, f"strategy._target_={FLOWER}.{name}", *change)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        check_use(settings, build_strategy(settings.strategy))
    assert "\n" not in str(caught.value)


def broken_models(folder):
    """Model folders, each with what is told of it."""
    whole = {
        "model.safetensors": save({"x": torch.zeros(1)}).decode("latin1"),
        "vocab.txt": "[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\n",
    }
    yield {}, "holds no config.json"
    yield {**whole, "config.json": "{"}, "cannot be loaded"
    yield {**whole, "config.json": '{"model_type": "brt"}'}, "cannot be loaded"
    remote = {"auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}, "model_type": "evil"}
    evil = f"open({str(folder / 'ran')!r}, 'w')\n"
    yield {**whole, "config.json": json.dumps(remote), "evil.py": evil}, "cannot be loaded"
    bert = {"config.json": '{"model_type": "bert"}'}
    yield bert, "holds no .safetensors file"
    yield {**bert, "model.safetensors": "x"}, r"model.safetensors cannot be loaded"
    yield {**bert, "pytorch_model.bin": "x"}, r"no .safetensors file \(files of pickles"


@pytest.mark.parametrize("case", range(7))
def test_model_folders(case, tmp_path):
    """Also one that asks for its own code to be run, and one of pickles."""
    files, message = list(broken_models(tmp_path))[case]
    (tmp_path / "model").mkdir()
    for name, text in files.items():
        (tmp_path / "model" / name).write_text(text, "latin1")
    settings = ModelSettings(name=str(tmp_path / "model"))
    for loader in (load_backbone, load_tokenizer):
        with pytest.raises(InputError, match=message) as caught:
            loader(settings)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_model_folder_without_tokeniser(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(save({"x": torch.zeros(1)}))
    with pytest.raises(InputError, match="holds no tokeniser: none of"):
        load_tokenizer(ModelSettings(name=str(tmp_path)))


FACE = "\N{GRINNING FACE}"
UNFIT = [  # how a folder with a model is spoilt, and what a run says of it
    (
        lambda f: change_weights(f, prefixed("_orig_mod.")),
        [],
        "their names begin with '_orig_mod.'",
    ),
    (lambda f: change_weights(f, prefixed("module.")), [], "their names begin with 'module.'"),
    (lambda f: change_weights(f, without("layer.1.")), [], "missing: encoder.layer.1.attention"),
    (lambda f: change_config(f, hidden_size=32), [], "weights of other sizes: embeddings"),
    (lambda f: change_config(f, num_hidden_layers=1), [], "has no place for: encoder.layer.1."),
    (lambda f: change_config(f, model_type="brt"), [], "cannot be loaded: its config.json"),
    (
        lambda f: change_config(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        [],
        "cannot be loaded",
    ),
    (lambda f: (f / "tokenizer.json").write_text("{"), [], "cannot be loaded: its tokeniser"),
    (lambda f: save_words(f, pad=None), [], "neither a padding token nor an end token"),
    (lambda f: save_words(f, words=[f"w{i}" for i in range(99)]), [], "gives ids up to 99 ('w98')"),
    (lambda f: None, ["data.text=[long]", "model.max_length=2000"], "line 2: its text gives 40"),
    (lambda f: None, ["data.text=[face]"], "line 2: its text gives no tokens"),
]


@pytest.mark.parametrize(
    ("spoil", "change", "message"), UNFIT, ids=lambda v: getattr(v, "__name__", str(v))[:40]
)
def test_models_and_texts_that_do_not_fit(spoil, change, message, tmp_path, monkeypatch, capfd):
    save_model(tmp_path / "model", add_pooling_layer=False)
    spoil(tmp_path / "model")
    rows = [f"{w} {i},{'film ' * 39}{w},{FACE * (i + 1)},{i % 2}" for i, w in enumerate(WORDS * 2)]
    (tmp_path / "data.csv").write_text("\n".join(["text,long,face,label", *rows]))
    monkeypatch.setattr("sys.argv", ["fedsvd"])
    given = [
        "data=folder", f"data.path={tmp_path / 'data.csv'}", "model=custom", "privacy=none",
        f"model.name={tmp_path / 'model'}", "model.head_init=zeros", "adapter.rank=2", "rounds=1",
        "clients.number=2", "clients.per_round=2", "partition=iid", "partition.min_examples=1",
        f"hydra.run.dir={tmp_path / 'run'}", "data.validation=0.5", *change,
    ]  # fmt: skip
    capfd.readouterr()  # of saving the model
    assert main(given) == 2
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith("error: ")
    assert message in told[0]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


RUNS = [
    ({}, "holds no finished run"),
    ({"classifier.json": "{"}, "holds no finished run"),
    ({"classifier.json": "[]"}, "holds no finished run"),
    ({"classifier.json": '{"model": "x"}'}, "holds no finished run"),
]


@pytest.mark.parametrize(
    ("files", "message"), RUNS, ids=lambda v: getattr(v, "__name__", str(v))[:40]
)
def test_finished_runs(files, message, tmp_path):
    (tmp_path / "classifier").mkdir()
    for name, text in files.items():
        (tmp_path / "classifier" / name).write_text(text)
    with pytest.raises(InputError, match=message):
        load(tmp_path)


COMMANDS = [
    (["resume=nowhere"], "resume: 'nowhere' is no run folder: it holds no config.yaml"),
    (["resume=.", "hydra.run.dir=x"], "hydra.run.dir: resume=RUN_DIR says where the run is"),
    (["-m", "resume=nowhere"], "resume: 'nowhere' is one run; with -m use resume=auto"),
    (["experiment=quickstart"], "experiment: takes a plus sign"),
    (["+privacy=none"], "privacy: is chosen already; leave the plus sign out"),
    (["+rounds=3"], "rounds: is there already; leave the plus sign out"),
    (["engine.workers=2"], "engine.workers: the chosen engine has no such key; use engine=ray"),
    (["hydra.run.dir=/dev/null"], "hydra.run.dir: the folder '/dev/null' cannot be made"),
    (["hydra.run.dir=/dev/null/x"], "hydra.run.dir: the folder '/dev/null/x' cannot be made"),
    (["-m", "seed=0", "hydra.sweep.dir=/dev/null"], "hydra.sweep.dir: the folder '/dev/null'"),
    (["--lits"], "unrecognized arguments: --lits"),
    (["--run", "-m"], "--run and --multirun: only one of them"),
    (["data=null"], "Config group override must be"),
    (["-m", "hydra/launcher=joblib", "seed=0"], "hydra/launcher: 'joblib' is not allowed; choose"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), COMMANDS, ids=lambda v: getattr(v, "__name__", str(v))[:40]
)
def test_commands(arguments, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fedsvd"])
    assert main(arguments) == 2
    told = capfd.readouterr().err
    assert told.startswith(f"error: {message}")
    assert len(told.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "file").write_text("mine\n")
    for resume in (None, "auto"):
        with pytest.raises(InputError, match="file: is a file, and a run needs a folder"):
            check_folder(tmp_path / "file", resume)


CLUSTERS = [
    ({"address": "foo"}, {}, "engine.address: 'foo' is not allowed; it must be host:port"),
    ({"address": "host:99999"}, {}, "engine.address: 'host:99999' is not allowed"),
    ({"address": "http://host:80"}, {}, "engine.address: 'http://host:80' is not allowed"),
    ({"address": "127.0.0.1:1"}, {}, "engine.address: '127.0.0.1:1' cannot be joined: "),
    ({"address": "ray://127.0.0.1:1"}, {}, "engine.address: 'ray://127.0.0.1:1' cannot be"),
    ({}, {"RAY_ADDRESS": "127.0.0.1:1"}, "RAY_ADDRESS: '127.0.0.1:1' cannot be joined: "),
    ({}, {"RAY_ADDRESS": "x y"}, "RAY_ADDRESS: 'x y' is not allowed"),
    ({}, {"TMPDIR": "/tmp/" + "x" * 100}, "TMPDIR: '/tmp/xxx"),
    ({}, {"RAY_TMPDIR": "/" + "é" * 40}, "RAY_TMPDIR: '/ééé"),
]


@pytest.mark.parametrize(
    ("engine", "variables", "message"), CLUSTERS, ids=lambda v: getattr(v, "__name__", str(v))[:40]
)
def test_clusters(engine, variables, message, monkeypatch):
    import ray

    from fedsvd.engines.cluster import check_engine

    ray.shutdown()
    for name in ("RAY_ADDRESS", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as caught:
        check_engine(EngineSettings("ray", **engine))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_failure_of_ours_is_one_line_without_a_traceback(monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["fedsvd"])

    def broken(arguments):
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr("fedsvd.run._main", broken)
    assert main([]) == 1
    told = capfd.readouterr().err
    assert told == (
        "error: a failure of this software: ZeroDivisionError: a b (FEDSVD_DEBUG=1 shows where)\n"
    )
    monkeypatch.setenv("FEDSVD_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main([])


def test_the_corpus_is_large():
    corpus = (
        SETTINGS, CSV, JSONL, FOLDERS, STRATEGIES, MODELS, UNFIT, RUNS, COMMANDS, CLUSTERS, USES
    )  # fmt: skip
    assert sum(map(len, corpus)) + 7 >= 100
