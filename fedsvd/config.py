"""From a composed configuration to checked settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from fedsvd.errors import InputError, one_of, wrong
from fedsvd.kinds import converted
from fedsvd.settings import AdapterSettings, PartitionSettings, Settings
from fedsvd.settings.engine import RecorderSettings
from fedsvd.settings.model import ADAPTERS

T = TypeVar("T")


def from_config(config: Mapping[str, Any]) -> Settings:
    """Return the checked settings of a composed configuration (plain dicts, lists and scalars)."""
    sections = dict(config)
    sections.pop("resume", None)  # says what to do with a run, not what it is
    strategy = dict(sections.get("strategy") or {})
    target = strategy.pop("_target_", None)
    if not isinstance(target, str) or "." not in target:
        raise wrong("strategy._target_", target, "the import path of a class, as package.Class")
    sections["strategy"] = {"target": target, "options": strategy}
    sections["adapter"] = _adapter(sections.get("adapter"))
    sections["recorder"] = _recorder(sections.get("recorder"))
    sections["data"] = _data(sections.get("data"))
    sections["partition"] = _partition(sections.get("partition"))
    return build(Settings, sections, "")


def _adapter(given: Any) -> Any:
    """Return the adapter's group with what is not for every adapter as its options."""
    if not isinstance(given, Mapping):
        return given
    adapter = dict(given)
    target = adapter.pop("_target_", None)
    common = {f.name for f in dataclasses.fields(AdapterSettings)} - {"target", "options"}
    options = {k: adapter.pop(k) for k in list(adapter) if k not in common}
    if target == ADAPTERS.get(str(adapter.get("name"))):
        target = None  # the one that the name says
    elif target is not None and (not isinstance(target, str) or "." not in target):
        raise wrong("adapter._target_", target, "the import path of a class, as package.Class")
    return {**adapter, "target": target, "options": options}


def _partition(given: Any) -> Any:
    """Return the partition's group with what is for a partitioner's class alone as its options."""
    if not isinstance(given, Mapping):
        return given
    partition = dict(given)
    target = partition.pop("_target_", None)
    if target is None:
        return partition
    return {**_of_a_class("partition", partition, target, PartitionSettings), "name": "flower"}


def _recorder(given: Any) -> Any:
    """Return the recorder's group with what only a recorder of one's own knows as its options."""
    if not isinstance(given, Mapping):
        return given
    recorder = dict(given)
    chosen = recorder.pop("chosen", None) or {}
    if isinstance(chosen, Mapping) and str(recorder.get("name")) in chosen:
        recorder["name"] = list(chosen)  # of recorder=[csv,wandb] the last one's name is left
    target = recorder.pop("_target_", None)
    if target is None:
        return recorder
    return _of_a_class("recorder", recorder, target, RecorderSettings)


def _of_a_class(group: str, given: dict[str, Any], target: Any, settings: type) -> dict[str, Any]:
    """Return a group with a class, and what `settings` does not know as its options."""
    if not isinstance(target, str) or "." not in target:
        raise wrong(f"{group}._target_", target, "the import path of a class, as package.Class")
    common = {f.name for f in dataclasses.fields(settings)} - {"target", "options"}
    options = {k: v for k, v in given.items() if k not in common}
    known = {k: v for k, v in given.items() if k in common}
    return {**known, "target": target, "options": options}


def _data(given: Any) -> Any:
    """Return the data's group with where it is from as its name, if it has none."""
    if not isinstance(given, Mapping) or given.get("name", "") is not None:
        return given
    where = (given.get(key) for key in ("path", "hub", "file"))
    return {**given, "name": next((str(place) for place in where if place is not None), "own")}


def build(cls: type[T], values: Mapping[str, Any], prefix: str) -> T:
    """Return dataclass `cls` from `values`, checking names and types on the way."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise one_of(f"{prefix}{key}", key, fields)
    checked = {}
    for name, spec in fields.items():
        if name not in values:
            if spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
                raise InputError(f"{prefix}{name}: missing from the configuration")
            continue
        value, kind = values[name], spec.type
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise wrong(f"{prefix}{name}", value, "a group of settings")
            checked[name] = build(kind, value, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            checked[name] = converted(f"{prefix}{name}", value, kind)
    return cls(**checked)
