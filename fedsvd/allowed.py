"""What a key takes, as the checks of the settings say it: for `--help` and the reference of keys.

There is no second list: wrong values are put to the checks, and the errors name what is allowed.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from fedsvd.config import from_config
from fedsvd.errors import InputError

# No name of anything and of the wrong kind for a number; a number that most keys refuse.
WRONG: tuple[Any, ...] = ("?", -1)
KINDS = ("a number", "a whole number")  # of what is in a list, where a list is asked for
NOT_ASKED = ("name", "_target_", "resume")  # of a group: they are fixed; no setting of a run


def allowed(
    config: Mapping[str, Any],
    check: Callable[[Mapping[str, Any]], object] = from_config,
    only: Collection[str] = (),
) -> dict[str, str]:
    """Return what each key takes, by its dotted path; keys that take any text are left out.

    `config` is a composed configuration as plain values, and `check` raises InputError where one
    cannot be used. `only` are the keys to ask for; none: all.
    """
    found = {}
    for path, group in _leaves(config):
        if only and ".".join(path) not in only:
            continue
        phrases = [p for value in WRONG if (p := _refusal(config, path, value, check))]
        # "a number" says less than "a number above 0".
        told = [p for p in dict.fromkeys(phrases) if not any(q != p and p in q for q in phrases)]
        if "a list" in told:
            told = [p for p in told if p not in KINDS]
        if told:
            null = group[path[-1]] is None or not _refused(config, path, None, check)
            ends = " or null" if null and "null" not in "".join(told) else ""
            found[".".join(path)] = ", ".join(told) + ends
    return found


def _leaves(
    config: Mapping[str, Any], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    for name, value in config.items():
        path = (*above, str(name))
        if isinstance(value, Mapping) and len(path) == 1:
            yield from _leaves(value, path)
        elif name not in NOT_ASKED:
            yield path, config


def _refused(
    config: Mapping[str, Any], path: tuple[str, ...], value: Any, check: Callable[..., object]
) -> InputError | None:
    changed = copy.deepcopy(dict(config))
    group: Any = changed
    for name in path[:-1]:
        group = group[name]
    group[path[-1]] = value
    try:
        check(changed)
    except InputError as error:
        return error
    return None


def _refusal(
    config: Mapping[str, Any], path: tuple[str, ...], value: Any, check: Callable[..., object]
) -> str:
    """Return what the check allows in place of the value, "" where it has nothing against it."""
    error = _refused(config, path, value, check)
    return error.allowed if error is not None and error.key == ".".join(path) else ""
