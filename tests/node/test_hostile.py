"""A hostile server against the node's real app: what it sends, and that it learns a type at most."""

import sys

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from omegaconf import OmegaConf

from fedsvd.client import worker
from fedsvd.composing import compose
from fedsvd.config import from_config
from fedsvd.engines.base import claim_identity
from fedsvd.flower_app import client_app
from fedsvd.node import app as node
from fedsvd.node.messages import check_training
from fedsvd.node.proposal import overrides_in
from fedsvd.node.refusals import Refusal
from tests.conftest import TINY, compose_settings
from tests.node.owner import (
    CANARIES,
    HOLDER,
    ROWS,
    SECRET,
    assert_holds_no_secret,
    assert_refused,
    assert_tells_nothing,
    context,
    events,
    make_owner,
    message,
)

NOT_ALLOWED, UNUSABLE = Refusal.NOT_ALLOWED, Refusal.UNUSABLE

ATTEMPTS = {
    # The owner's privacy switched off.
    "no privacy by its group": ["privacy=none"],
    "no privacy by a dotted key": ["privacy.unit=none"],
    "no privacy by force": ["++privacy.unit=none"],
    "no privacy by an experiment": ["+experiment=no_dp"],
    "no privacy by another experiment": ["+experiment=quickstart"],
    "noise left to the server": ["privacy=client_level"],
    "unit client": ["privacy.unit=client"],
    "more epsilon": ["privacy.epsilon=1000"],
    "next to no noise": ["privacy.epsilon=null", "privacy.noise_multiplier=1e-9"],
    "noise below the floor": ["privacy.epsilon=null", "privacy.noise_multiplier=0.09"],
    "a published recipe's noise": ["privacy.accounting=paper"],
    "no clipping to speak of": ["privacy.clip_norm=1e9"],
    "noise that follows from the seed": ["privacy.secure_noise=false"],
    "secure noise removed": ["~privacy.secure_noise"],
    "losses and norms": ["privacy.diagnostics=true"],
    "counts public": ["privacy.public_counts=true"],
    "weights by examples": ["clients.weighting=examples"],
    "a trusted server": ["privacy.threat_model=trusted_server"],
    # Rows, size and environment read through errors.
    "labels are texts": ["data.label=text", "data.labels=[x,y]"],
    "labels are rows": ["data.label=text", "data.labels=[bad,good]"],
    "labels guessed": ["data.labels=[bad,good,HIV-positive]"],
    "columns exchanged": ["data.text=[label]"],
    "a filter that finds a row": ["data.filter=null", "++data.filter={text: zebrafish}"],
    "a column of ids": ["++data.id=text"],
    "a limit": ["data.limit=1"],
    "texts made public": ["data.public=100"],
    "another folder": ["data.path=/etc"],
    "a relative path": ["data.path=../rows"],
    "a hub's data": ["data.path=org/name"],
    "another package's data": ["data.package=json"],
    "another group of data": ["data=sst2"],
    "the size by min_examples": [f"partition.min_examples={ROWS + 1}"],
    "the size by min_examples below": [f"partition.min_examples={ROWS}"],
    "the size by delta": [f"privacy.delta={1 / ROWS}"],
    "another's part": ["partition.holder=0"],
    "a partition of the default task": ["partition=dirichlet"],
    "the environment as a name": ["model.name=${oc.env:FEDSVD_SECRET}"],
    "the environment as a number": ["seed=${oc.env:FEDSVD_SECRET}"],
    "the environment in a list": ["adapter.targets=[query,${oc.env:FEDSVD_SECRET}]"],
    "hydra's resolver": ["+seed2=${hydra:runtime.cwd}"],
    "a relative interpolation": ["model.name=${.package}"],
    "an escaped interpolation": ["model.name=\\${oc.env:FEDSVD_SECRET}"],
    # Code and files of the server's choice.
    "hydra's search path": ["hydra.searchpath=[file:///tmp]"],
    "hydra's search path added": ["+hydra.searchpath=[file:///tmp]"],
    "hydra's launcher": ["hydra/launcher=ray"],
    "hydra's run folder": ["hydra.run.dir=/tmp/x"],
    "a package of the configuration": ["+data@privacy=folder"],
    "a file outside the configurations": ["data=../../../etc/passwd"],
    "an absolute file": ["+experiment=/etc/passwd"],
    "a list of files": ["+experiment=[dp_eps1,../evil]"],
    "a strategy to import": ["strategy._target_=evil_module.Strategy"],
    "a function as strategy": ["strategy._target_=os.system"],
    "an adapter to import": ["adapter._target_=evil_module.Adapter"],
    "an adapter under another's name": ["adapter._target_=fedsvd.adapters.Eva"],
    "a class in an option": ["+adapter.rows={_target_: evil_module.Adapter}"],
    "an option that nobody knows": ["+adapter.evil=1"],
    "a server's class": ["attack._target_=evil_module.Attack"],
    "another model": ["model.name=/tmp/model"],
    "a model beside": ["model.name=../model"],
    "the default model, which this owner has not named": [
        "model.name=sentence-transformers/all-MiniLM-L6-v2"
    ],
    "another package's model": ["model.package=json"],
    "a revision": ["model.revision=evil"],
    # The machine.
    "rounds without end": ["rounds=1000000000"],
    "steps without end": ["training.local_steps=1000000000"],
    "clients without end": ["clients.number=1000000000"],
    "no place for this client": ["clients.number=1", "clients.per_round=1"],
    "a huge rank": ["adapter.rank=100000"],
    "a huge rank of one layer": ["adapter.ranks={query: 100000}"],
    "huge batches": ["training.microbatch_tokens=1000000000"],
    "more memory than there is": ["training.cache=1000000000000"],
    "an epsilon that accountants work on for long": ["privacy.epsilon=1e-9"],
    "nothing but brackets": ["seed=" + "[" * 3000],
    "very many overrides": [f"+x{i}=1" for i in range(600)],
    # The rest.
    "an attack": ["attack=sign_flip", "attack.clients=[1]"],
    "a run to go on with": ["resume=/tmp/run"],
    "a sweep": ["seed=1,2,3"],
    "a sweep of a group": ["strategy=fedavg,ffa"],
    "a key that nobody knows": ["++secrets.all=1"],
    "a section made a number": ["++privacy=1"],
    "no override at all": ["="],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    owner = make_owner(tmp_path_factory.mktemp("owner"))
    # What is refused below is refused for what it adds.
    node.settings_of(node.policy_of(context(owner)), context(owner))
    return owner


@pytest.fixture
def owner(made, monkeypatch):
    monkeypatch.setenv("FEDSVD_SECRET", SECRET)
    return made


def test_there_are_enough_attempts():
    assert len(ATTEMPTS) >= 25


@pytest.mark.parametrize("name", ATTEMPTS)
def test_what_a_policy_does_not_leave_open_is_refused(owner, name, capfd):
    assert_refused(owner, message(), context(owner, *ATTEMPTS[name]), NOT_ALLOWED)
    told = capfd.readouterr().err
    assert "this node refuses (not-allowed): " in told  # its owner is told more
    assert "Traceback" not in told
    print(f"TOLD {name:40} {told[told.index('):') + 3 :].strip()[:150]}")


def test_text_that_is_no_list_of_overrides_is_refused(owner):
    told = context(owner)
    for text in ("seed='1", "a b c", "seed=1 \x00", "-m seed=1", "--multirun", "@", "~", "'"):
        told.run_config["overrides"] = text
        assert_refused(owner, message(), told, NOT_ALLOWED)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_server_cannot_bring_a_policy_of_its_own(owner, kind, tmp_path):
    theirs = tmp_path / "policy.yaml"
    theirs.write_text(owner.policy.read_text().replace("unit: example", "unit: none"))
    told = context(owner, "privacy=none")
    told.run_config |= {"policy": str(theirs), "FEDSVD_NODE_POLICY": str(theirs)}
    assert_refused(owner, message(kind), told, NOT_ALLOWED)
    del told.node_config["policy"]
    assert_refused(owner, message(kind), told, Refusal.NO_POLICY)


@pytest.mark.parametrize("part", ["train", "test", "validation", "rows"])
def test_no_evaluation_on_private_rows(owner, part):
    told = context(owner)
    assert_refused(owner, message("evaluate", part=part), told, NOT_ALLOWED)


def pickled():
    return Array("object", (1,), "numpy.ndarray", b"\x80\x04N.")


def odd(**config):
    return lambda: message(**{"server-round": 1, **config})


def without_arrays():
    return Message(RecordDict({"config": ConfigRecord({"server-round": 1})}), 99, "train")


MESSAGES = {
    "no round": lambda: message(**{"server-round": "1"}),
    "round 0": odd(**{"server-round": 0}),
    "a round after the last": odd(**{"server-round": 3}),
    "a fraction": odd(**{"server-round": 1.5}),
    "an attempt below 0": odd(attempt=-1),
    "kinds that are none": odd(trains=["everything"]),
    "kinds that are no list": odd(keeps="A"),
    "a head that trains in turn": odd(trains=["extra"]),
    "ranks without clients": odd(ranks=[2]),
    "a rank above the model's": odd(ranks=[3], ranked=[HOLDER]),
    "a filter of a million entries": odd(**{"local-smoothing": 1e9}),
    "a penalty that is no number": odd(**{"local-penalty": float("nan")}),
    "a number of components that is no whole one": odd(**{"local-budget": 2.5}),
    "a key below 0": odd(**{"local-folds": -1}),
    "a rule that is a text": odd(**{"local-alternates": "yes"}),
    "a projection that is a number": odd(**{"local-projected": 1}),
    "steps that nobody knows": odd(**{"local-steps": "backwards"}),
    "a decay of one": odd(**{"local-beta2": 1.0}),
    "a rate below zero": odd(**{"local-rate_A": -1.0}),
    "a pull beyond the last move": odd(**{"local-gamma": 1.5}),
    "values that are not finite": lambda: message(arrays={"x": Array(np.float32([np.nan]))}),
    "absurd values": lambda: message(arrays={"x": Array(np.float32([1e30]))}),
    "whole numbers": lambda: message(arrays={"x": Array(np.arange(3))}),
    "a pickle": lambda: message(arrays={"x": pickled()}),
    "nothing": lambda: Message(RecordDict({}), 99, "train"),
    "no arrays": lambda: without_arrays(),
    "another action": lambda: message("train.secrets"),
    "a query that is none": lambda: message("query.rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_that_a_node_cannot_work_with(owner, name):
    claim_identity()
    assert_refused(owner, MESSAGES[name](), context(owner), UNUSABLE)


def test_a_head_may_stay_with_the_client():
    told = message(keeps=["B", "extra"])
    assert check_training(told, compose_settings(*TINY)) == (1, 0)


def test_a_query_is_answered_with_the_clients_number_alone(owner):
    reply = client_app(message("query", give="rows"), context(owner))
    assert dict(reply.content["config"]) == {"client": HOLDER}
    assert list(reply.content) == ["config"]


def test_nothing_is_imported_for_a_server(owner, tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('code of the server ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for key in ("strategy", "adapter"):
        told = context(owner, f"{key}._target_=evil_module.Thing")
        assert_refused(owner, message(), told, NOT_ALLOWED)
    assert "evil_module" not in sys.modules


def failing(error):
    def train_locally(*args, **kwargs):
        raise error

    return train_locally


class Panic(BaseException):
    """As libraries in Rust raise."""


@pytest.mark.parametrize(
    "error",
    [ValueError(CANARIES[0]), MemoryError(CANARIES[1]), KeyError(CANARIES[2]), Panic("zebrafish")],
)
def test_an_error_on_private_rows_is_told_by_its_type_and_charged(tmp_path, monkeypatch, error):
    owner = make_owner(tmp_path)
    monkeypatch.setattr("fedsvd.client.app.train_locally", failing(error))
    reply = client_app(message(), context(owner))
    assert_tells_nothing(reply, Refusal.UNAVAILABLE)
    assert len(owner.charges()) == 1  # the steps may have been taken


def test_one_type_for_everything_that_depends_on_the_rows(tmp_path):
    """A row that cannot be read, a column twice, no file, a delta above 1/n: all the same."""
    owner = make_owner(tmp_path)
    whole = owner.data.read_text()
    replies = []
    for text in (f"{whole}\nzebrafish,bad,HIV", "text,label,zebrafish,zebrafish\na,bad,b,c", None):
        owner.data.write_text(text) if text else owner.data.unlink()
        replies.append(client_app(message(), context(owner)))
    owner.data.write_text(whole)
    owner.write(privacy={"delta": 0.01})  # not below 1/317
    replies.append(client_app(message(), context(owner, "privacy.delta=1e-4")))
    assert {(r.error.code, r.error.reason) for r in replies} == {(104, "not-available")}
    for reply in replies:
        assert_tells_nothing(reply, Refusal.UNAVAILABLE)
    assert events(owner) == []


def test_a_row_that_its_owner_takes_out_is_in_no_later_round(tmp_path):
    owner = make_owner(tmp_path)
    rows = owner.data.read_text().splitlines()
    seen = []
    for number, lines in ((1, rows), (1, rows), (2, rows[:-1])):
        owner.data.write_text("\n".join(lines)) if lines is not rows else None
        reply = client_app(message(**{"server-round": number}), context(owner))
        assert not reply.has_error()
        (built,) = worker._built.values()
        seen.append((built, {built.task.texts[i] for i in built.parts[HOLDER]}))
    assert seen[0][0] is seen[1][0] is not seen[2][0]
    assert len(seen[0][1] - seen[2][1]) == 1
    contents = [c.content for c in owner.charges()]
    assert contents[0] == contents[1] != contents[2]


def test_the_answer_is_arrays_weight_and_steps_and_the_same_for_any_rows(tmp_path):
    """Many rows, few, one, and one of a label that nobody declared: the server sees no difference."""
    owner = make_owner(tmp_path)
    replies = [client_app(message(), context(owner))]
    whole = owner.data.read_text()
    for text in (
        "\n".join(whole.splitlines()[:150]), "text,label\nzebrafish,bad",
        f"{whole}\nsecret zebrafish,HIV-positive",
    ):  # fmt: skip
        owner.data.write_text(text)
        worker._built.clear()
        replies.append(client_app(message(), context(owner)))
    for reply in replies:
        assert sorted(reply.content) == ["arrays", "metrics", "report"]
        assert dict(reply.content["metrics"]) == {"num-examples": 1.0}
        assert dict(reply.content["report"]) == {"steps": 1}
        assert_holds_no_secret(reply)
    shapes = [{k: a.shape for k, a in r.content["arrays"].items()} for r in replies]
    assert shapes == shapes[:1] * 4
    assert len(set(events(owner))) == 1  # noise and rate do not depend on the rows


def test_a_seed_that_the_server_knows_does_not_repeat_the_noise(tmp_path):
    owner = make_owner(tmp_path)
    asked = message()
    first, second = (client_app(asked, context(owner)).content["arrays"] for _ in range(2))
    assert any((first[k].numpy() != second[k].numpy()).all() for k in first)
    assert len(owner.charges()) == 2  # a message that comes twice is paid for twice


def before_policies(policy, context):
    """What the node did before: the run's overrides, and then its owner's few."""
    given = [*overrides_in(context.run_config), f"data.path={policy.data.path}"]
    given += ["partition.holder=1", f"model.name={policy.models['tiny']}", "engine.threads=1"]
    return from_config(OmegaConf.to_container(compose(given), resolve=True))


BYPASSED = [
    "no privacy by its group", "no privacy by an experiment", "more epsilon", "labels are texts",
    "the size by delta", "the size by min_examples", "the environment as a number",
    "another folder", "no clipping to speak of", "steps without end",
]  # fmt: skip


@pytest.mark.parametrize("name", BYPASSED)
def test_without_the_policys_check_the_attempts_are_not_refused_as_they_should(
    owner, name, monkeypatch
):
    """Planted bug: these assertions see it."""
    monkeypatch.setattr(node, "settings_of", before_policies)
    monkeypatch.setattr(node, "_charged", lambda *_: pytest.fail("trains"))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        assert_refused(owner, message(), context(owner, *ATTEMPTS[name]), NOT_ALLOWED)


def test_without_the_outermost_catch_a_row_is_told(tmp_path, monkeypatch):
    """Planted bug: Flower sends the message of an exception."""
    owner = make_owner(tmp_path)
    owner.data.write_text(f"text,label,{CANARIES[1]},{CANARIES[1]}\n{CANARIES[0]},bad,a,b")
    with pytest.raises(Exception, match=CANARIES[1]):
        ClientApp.__call__(client_app, message(), context(owner))


def test_a_supernode_without_policy_refuses_whatever_the_partition(owner, monkeypatch):
    monkeypatch.delenv("FEDSVD_NODE_POLICY", raising=False)
    config = {"partition-id": 0, "num-partitions": 3}
    for text in ("partition=own", "partition=iid", "+experiment=quickstart", ""):
        told = Context(1, 99, config, RecordDict(), {"overrides": text})
        for kind in ("train", "evaluate"):
            reply = client_app(message(kind), told)
            assert_tells_nothing(reply, Refusal.NO_POLICY)


def test_arrays_of_other_names_are_refused(owner):
    arrays = ArrayRecord({"no.such.layer.A": Array(np.zeros((2, 16), np.float32))})
    reply = client_app(message(arrays=dict(arrays)), context(owner))
    assert reply.has_error()
    assert_holds_no_secret(reply)


def test_what_a_server_sends_does_not_steer_the_owners_terminal(owner, capfd):
    arrays = {"\x1b]0;owned\x07": Array(np.float32([np.nan]))}
    assert_refused(owner, message(arrays=arrays), context(owner), UNUSABLE)
    told = capfd.readouterr().err
    assert "owned" in told
    assert "\x1b" not in told
