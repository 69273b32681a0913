"""A node's owner: rows with canaries, a tiny model, a policy, an account; and what a server sends."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fedsvd.engines.base import claim_identity
from fedsvd.flower_app import client_app
from fedsvd.node import account
from fedsvd.node.refusals import CODES, Refusal
from tests.tiny import WORDS, make_inputs

ROWS = 317
CANARIES = ("zebrafish", "marmalade", "quixotic")  # in texts; a label's name nobody told
SECRET = "swordfish-in-the-environment"
EPSILON, DELTA, HOLDER = 2.0, 1e-4, 1


@dataclass(frozen=True)
class Owner:
    folder: Path

    @property
    def policy(self) -> Path:
        return self.folder / "policy.yaml"

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.json"

    @property
    def data(self) -> Path:
        return self.folder / "rows" / "train.csv"

    def write(self, **changes):
        """Write the policy, with changes by section."""
        values = {
            "id": "reviews",
            "ledger": str(self.ledger),
            "data": {"path": str(self.data.parent), "labels": ["bad", "good"]},
            "privacy": {
                "epsilon": EPSILON, "delta": DELTA, "clip_norm": 1.0, "accountant": "rdp",
            },
            "models": {"tiny": str(self.folder / "model")},
            "device": "cpu",
            "threads": 1,
        }  # fmt: skip
        for key, value in changes.items():
            values[key] = {**values[key], **value} if isinstance(values.get(key), dict) else value
        self.policy.write_text(yaml.safe_dump(values))
        self.policy.chmod(0o600)
        return self

    def charges(self):
        return account.read(self.ledger)


def make_owner(folder: Path) -> Owner:
    make_inputs(folder)
    (folder / "rows").mkdir()
    generator = torch.Generator().manual_seed(3)
    lines = ["text,label"]
    for i in range(ROWS):
        drawn = torch.randint(len(WORDS), (6,), generator=generator).tolist()
        canary = CANARIES[i % len(CANARIES)]
        lines.append(f"{' '.join(WORDS[d] for d in drawn)} {canary} {i},{('bad', 'good')[i % 2]}")
    owner = Owner(folder)
    owner.data.write_text("\n".join(lines))
    account.create(owner.ledger)
    return owner.write()


# What an honest server sends.
HONEST = (
    "partition=own", "data.labels=[bad,good]", "data.label_texts=[[bad],[good]]",
    "data.public_size=900", "clients.number=3", "clients.per_round=3", "model=custom",
    "model.name=tiny", "adapter.rank=2", "rounds=2", "training.batch_size=8",
    "training.local_steps=1", "training.precision=fp32", "privacy.accountant=rdp",
    "privacy.secure_noise=true", "privacy.diagnostics=false", "privacy.epsilon=1", "seed=5",
    "privacy.delta=1e-5",
)  # fmt: skip


def context(owner: Owner, *more: str, run: int = 7, **node_config) -> Context:
    """Return what Flower gives a node's app; `more` overrides come after the honest ones."""
    text = " ".join(f"'{o}'" for o in (*HONEST, *more))
    config = {"partition-id": HOLDER, "num-partitions": 3, "policy": str(owner.policy)}
    return Context(run, 99, {**config, **node_config}, RecordDict(), {"overrides": text})


def message(kind: str = "train", arrays=None, **config) -> Message:
    claim_identity()
    given = {"server-round": 1, **config}
    content = {"arrays": ArrayRecord(arrays or {}), "config": ConfigRecord(given)}
    return Message(RecordDict(content), 99, kind)


def bare(reply: Message) -> bytes:
    """Return every byte that a reply would send."""
    if reply.has_error():
        return repr((reply.error.code, reply.error.reason)).encode()
    objects = get_all_nested_objects(reply).values()
    return b"\n".join(o.deflate() for o in objects)


def assert_refused(owner: Owner, asked: Message, told: Context, *kinds: Refusal):
    """Ask the node's app; it must answer with one of the types, tell nothing, charge nothing."""
    before = owner.ledger.read_bytes()
    reply = client_app(asked, told)
    assert_tells_nothing(reply, *kinds)
    assert owner.ledger.read_bytes() == before


def assert_tells_nothing(reply: Message, *kinds: Refusal):
    assert reply.has_error(), "the node did what it was asked"
    assert not reply.has_content()
    assert reply.error.reason in {k.value for k in kinds}
    assert reply.error.code == CODES[Refusal(reply.error.reason)]
    assert_holds_no_secret(reply)


def assert_holds_no_secret(reply: Message):
    sent = bare(reply)
    for secret in (*CANARIES, SECRET, str(ROWS), str(os.getcwd()), "Traceback", "Error"):
        if secret == str(ROWS) and not reply.has_error():
            continue  # three digits can be in an array's bytes
        assert secret.encode() not in sent, secret


def events(owner: Owner):
    return [c.event for c in owner.charges()]


def document(owner: Owner):
    return json.loads(owner.ledger.read_text())
