"""The finished runs of a folder, in groups that differ in the seed alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import yaml
from omegaconf import OmegaConf

from fedsvd.errors import InputError, one_of
from fedsvd.objectives.metric import FIGURES, Metric, metric_of

if TYPE_CHECKING:
    from pandas import DataFrame

# What tells nothing of the method: it does not change what is estimated, or is the sample itself.
APART = ("seed", "engine.", "recorder.", "device", "resume", "training.microbatch_tokens",
         "training.cache")  # fmt: skip
TEST = "test_"  # before the names of figures on the test part
SHORT = {"strategy._target_": "strategy", "adapter.name": "adapter", "privacy.unit": "privacy"}


@final
@dataclass(frozen=True, repr=False)
class Finished:
    """A finished run.

    The tables are read from the run's folder at each access.

    Attributes:
        folder: where the run is.
        config: every setting, by dotted key.
        summary: what `summary.json` holds.
    """

    folder: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.summary["seed"])

    @property
    def history(self) -> "DataFrame":
        """A row for each round from 0, with the figures of `metrics.jsonl` that are of the round."""
        from fedsvd.results.frames import history  # pandas is slow to import

        return history(self.folder)

    @property
    def reports(self) -> "DataFrame":
        """A row for each client that was asked in a round: its report and what it has spent."""
        from fedsvd.results.frames import reports

        return reports(self.folder)

    @property
    def clients(self) -> "DataFrame":
        """A row for each client: its ledger, its size, and its last report."""
        from fedsvd.results.frames import clients

        return clients(self.folder)

    def load(self, **options: Any) -> Any:
        """Return the model that the run left, as `fedsvd.load(folder, **options)` does."""
        from fedsvd.exports.load import load  # PyTorch is slow to import

        return load(self.folder, **options)

    def __repr__(self) -> str:
        metric = metric_of(self.summary)
        told = [f"rounds={self.summary.get('rounds_completed')}",
                f"{metric.name}={self.summary[metric.name]:.4f}"]  # fmt: skip
        if self.summary.get("epsilon_max") is not None:
            told.append(f"epsilon={self.summary['epsilon_max']:.3f}")
        return f"Finished({str(self.folder)!r}, {', '.join(told)})"


@dataclass(frozen=True)
class Group:
    """Runs of the same settings, one for each seed in ascending order, and their name.

    `keys` are the settings that tell the groups of a folder from each other. `matches` are the runs'
    partners in other groups: the seed and, where groups are made by chosen keys, all other settings.
    """

    name: str
    keys: Mapping[str, Any]
    runs: Sequence[Finished]
    matches: Sequence[tuple[int, str]]

    def values(self, key: str) -> dict[tuple[int, str], float]:
        """Return a figure of the summaries by what matches in other groups, where there is one."""
        found = zip(self.matches, self.runs, strict=True)
        told = {match: run.summary.get(key) for match, run in found}
        return {match: float(v) for match, v in told.items() if v is not None}


def metric_of_groups(groups: Sequence[Group], name: str | None = None) -> Metric:
    """Return the metric by which the runs are compared; InputError if they are of several kinds.

    `name` asks for another figure of the summaries than the objective's own.
    """
    if name is not None:
        return _asked(groups, name)
    found = dict.fromkeys(metric_of(run.summary) for group in groups for run in group.runs)
    if len(found) > 1:
        told = " and ".join(metric.title for metric in found)
        raise InputError(f"runs are compared by one figure, and these have {told}; take them apart")
    return next(iter(found))


def _asked(groups: Sequence[Group], name: str) -> Metric:
    base = name.removeprefix(TEST)
    known = {metric.name: metric for metric in FIGURES}
    held = [m for m in known if any(group.values(m) for group in groups)]
    if base not in held:
        raise one_of("--metric", name, [*held, *(f"{TEST}{m}" for m in held)])
    if len(groups) != len([g for g in groups if g.values(name)]):
        raise InputError(f"--metric: not all runs have {name!r}")
    return replace(known[base], name=name)


def filtered(runs: Sequence[Finished], asked: Sequence[str]) -> list[Finished]:
    """Return the runs whose settings are those of every "KEY=VALUE[,VALUE]" in `asked`.

    Raises InputError for a key that no run has, or if nothing is left.
    """
    left = list(runs)
    for one in asked:
        key, sign, values = one.partition("=")
        if not sign:
            raise InputError(f"--filter: {one!r} is not allowed; it must be KEY=VALUE[,VALUE]")
        key = _known_key("--filter", key, runs)
        wanted = [yaml.safe_load(value) for value in values.split(",")]
        left = [run for run in left if run.config.get(key) in wanted]
    if not left:
        raise InputError(f"--filter: no run has {', '.join(asked)}")
    return left


def _known_key(option: str, key: str, runs: Sequence[Finished]) -> str:
    """Return the dotted key that is meant; InputError if no run has it."""
    keys = dict.fromkeys(k for run in runs for k in run.config)
    found = {short: long for long, short in SHORT.items() if long in keys}.get(key, key)
    if found not in keys:
        raise one_of(option, key, list(keys))
    return found


def find_runs(folder: Path) -> tuple[list[Finished], list[Path]]:
    """Return the finished runs at any depth below `folder`, and the folders of unfinished ones.

    Raises InputError if there is no run, or a run's files cannot be read.
    """
    finished, unfinished = [], []
    for config in sorted(folder.rglob("config.yaml")):
        run = config.parent
        if any(part.startswith("unfinished-") for part in run.relative_to(folder).parts):
            continue
        if not (run / "summary.json").exists():
            if (run / "metrics.jsonl").exists():
                unfinished.append(run)
            continue
        finished.append(read_run(run))
    if not finished:
        also = f" ({len(unfinished)} unfinished)" if unfinished else ""
        raise InputError(f"{folder}: holds no finished run{also}")
    return finished, unfinished


def read_run(run: Path) -> Finished:
    """Return the finished run of a folder; InputError if its files cannot be read."""
    try:
        settings: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"), resolve=True)
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        finished = Finished(run, dict(_flat(settings)), summary)
        summary["seed"], summary[metric_of(summary).name]
    except Exception as error:  # YAML's and JSON's own errors, or other things than expected
        raise InputError(f"{run}: is not a run of this software: {error!r}") from error
    return finished


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{key}.")
        else:
            flat.append((prefix + str(key), value))
    return flat


def find_in(folders: Sequence[Path]) -> tuple[list[Finished], list[Path]]:
    """Return the runs of several folders as `find_runs` does; one that is in two counts once."""
    finished: dict[Path, Finished] = {}
    unfinished: dict[Path, Path] = {}
    for folder in folders:
        runs, others = find_runs(folder)
        finished.update({run.folder.resolve(): run for run in runs})
        unfinished.update({run.resolve(): run for run in others})
    return list(finished.values()), list(unfinished.values())


def group_runs(runs: Sequence[Finished], by: Sequence[str] = ()) -> list[Group]:
    """Return the runs in groups of equal settings, apart from the seed and where they ran.

    A seed that occurs twice in a group counts once, as the same seed gives the same run. `by` are the
    keys that alone make groups; runs that differ in others are then runs of one group. Raises
    InputError for a key that no run has.
    """
    if by:
        return _grouped_by(runs, [_known_key("--group-by", key, runs) for key in by])
    alike: dict[str, dict[int, Finished]] = {}
    for run in runs:
        told = {k: v for k, v in run.config.items() if not k.startswith(APART)}
        alike.setdefault(json.dumps(told, sort_keys=True, default=str), {})[run.seed] = run
    members = [list(by_seed.values()) for by_seed in alike.values()]
    keys = _telling([group[0].config for group in members])
    groups = []
    for group in members:
        told = {key: group[0].config.get(key) for key in keys}
        ordered = sorted(group, key=lambda run: run.seed)
        matches = [(run.seed, "") for run in ordered]
        groups.append(Group(name_of(told) or "all runs", told, ordered, matches))
    return sorted(groups, key=lambda g: [_order(v) for v in g.keys.values()])


def _grouped_by(runs: Sequence[Finished], keys: Sequence[str]) -> list[Group]:
    others = [k for k in _telling([run.config for run in runs]) if k not in keys]
    pooled: dict[str, dict[tuple[int, str], Finished]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        own = json.dumps([run.config.get(k) for k in keys], default=str)
        rest = json.dumps([run.config.get(k) for k in others], default=str)
        pooled.setdefault(own, {})[(run.seed, rest)] = run
    groups = []
    for held in pooled.values():
        members = list(held.values())
        told = {key: members[0].config.get(key) for key in keys}
        groups.append(Group(name_of(told), told, members, list(held)))
    return sorted(groups, key=lambda g: [_order(v) for v in g.keys.values()])


def _telling(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys that name the groups: those in all whose values differ, others if needed."""
    every = list(dict.fromkeys(k for c in configs for k in c if not k.startswith(APART)))
    differ = [k for k in every if len({json.dumps(c.get(k), default=str) for c in configs}) > 1]
    keys = [k for k in differ if all(k in c for c in configs)]
    for key in (k for k in differ if k not in keys):
        if len({json.dumps([c.get(k) for k in keys], default=str) for c in configs}) == len(
            configs
        ):
            break
        keys.append(key)
    return sorted(keys, key=lambda k: (k not in SHORT, k))


def name_of(keys: Mapping[str, Any]) -> str:
    """Return settings as a short text."""
    return ", ".join(f"{SHORT.get(k, k)}={_text(k, v)}" for k, v in keys.items())


def _text(key: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).rpartition(".")[2] if key.endswith("._target_") else str(value)


def _order(value: Any) -> tuple[int, float, str]:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (0, float(value), "") if number else (1, 0.0, str(value))
