"""The command: Hydra in, results out.

    python -m fedsvd.run +experiment=dp_eps1
    python -m fedsvd.run -m +experiment=dp_eps1 privacy.epsilon=1,3,6
    python -m fedsvd.run +experiment=dp_eps1 strategy._target_=my_lab.MyStrategy

Exit status: 0 done, 2 the input is wrong, 1 a failure of ours, 130 / 143 interrupted.
"""

import logging
import os
import re
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from fedsvd.errors import InputError, nearest


def config_folder() -> Path:
    """Return the folder of the configurations: in the installed package, or in the source tree."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    # Hydra would print its own shortened traceback and exit with 1; errors are told here instead.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    debug = os.environ.get("FEDSVD_DEBUG") == "1"
    signal.signal(signal.SIGTERM, _terminate)
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    arguments = sys.argv[1:] if arguments is None else arguments
    sys.argv = [sys.argv[0], *arguments]
    sys.path.insert(0, os.getcwd())  # so that strategy._target_=my_lab.MyStrategy finds my_lab.py
    refused: list[InputError] = []

    def job(config: Any) -> float | None:
        try:
            return _job(config)
        except InputError as error:  # past Hydra, which would announce it in its own words
            refused.append(error)
            return None

    try:
        hydra.main(str(config_folder()), "config", version_base="1.3")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        if debug:
            raise
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    for refusal in refused:
        print(f"error: {refusal}", file=sys.stderr)
        if debug:
            raise refusal
    return 2 if refused else 0


def _terminate(signum: int, frame: Any) -> None:
    print("terminated", file=sys.stderr)
    raise SystemExit(128 + signum)


def _job(config: Any) -> float:
    """Run one composed configuration; its validation accuracy is what a sweeper optimises."""
    from hydra.core.hydra_config import HydraConfig

    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    return execute(config, Path(hydra_config.runtime.output_dir), overrides)["accuracy"]


def execute(config: Any, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Check a composed configuration, run it, leave everything in `folder`; return the summary.

    Raises InputError before any work if something cannot be used, and then leaves no empty folder
    behind.
    """
    from omegaconf import OmegaConf

    from fedsvd.config import from_config

    try:
        settings = from_config(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
        taken = [
            n for n in ("config.yaml", "metrics.jsonl", "summary.json") if (folder / n).exists()
        ]
        if taken:
            raise InputError(
                f"{folder}: holds another run ({taken[0]}); choose another hydra.run.dir"
            )
        _quiet()
        from fedsvd.experiment import prepare, train
        from fedsvd.results.recorder import make_recorder
        from fedsvd.results.screen import Screen
        from fedsvd.strategies.build import build_strategy, check_use

        given = [m[1] for o in overrides if (m := re.match(r"\+*strategy\.(\w+)=", o))]
        strategy = build_strategy(settings.strategy, given)
        check_use(settings)
        run = prepare(settings, strategy)
        screen = Screen(folder)
        recorder = make_recorder(
            settings.recorder.name, folder, OmegaConf.to_yaml(config, resolve=True), screen
        )
    except InputError:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise
    try:
        return train(run, recorder)
    finally:
        screen.close()
        run.grid.close()


def _quiet() -> None:
    """Keep libraries' advice off the screen; warnings of ours stay."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    for name in ("transformers", "datasets", "opacus", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=rf"{name}\..*")


def explain(error: Exception) -> str:
    """Return Hydra's complaint as one line, with the nearest valid name if there is one."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)  # type: ignore[arg-type]
    text = " ".join(" ".join(str(e).split()) for e in causes)
    unknown_key = re.search(r"Key '([^']+)' is not in struct\s+full_key: (\S+)", text)
    if unknown_key:
        key, full = unknown_key.groups()
        near = nearest(key, _known_keys(full))
        meant = f" (did you mean {full.removesuffix(key)}{near}?)" if near else ""
        return f"{full}: there is no such key{meant}"
    option = re.search(r"Could not find '([^']+)' Available options in '([^']+)': (.*)", text)
    if option:
        found, group, names = option.groups()
        choices = names.split()
        near = nearest(found.split("/")[-1], choices)
        meant = f" (did you mean {near!r}?)" if near else ""
        found = found.split("/")[-1]
        return f"{group}: {found!r} is not allowed{meant}; choose from {', '.join(choices)}"
    group_name = re.search(r"Could not override '([^']+)'", text)
    if group_name:
        name = group_name.group(1).split("@")[0]
        near = nearest(name.split(".")[0], _known_keys(""))
        meant = f" (did you mean {near}?)" if near else ""
        return f"{name}: there is no such key or group{meant}"
    return " ".join(str(error).split())


def _known_keys(full_key: str) -> list[str]:
    """Return the keys that stand beside `full_key` in the settings."""
    import dataclasses

    from fedsvd.settings import Settings

    kind: Any = Settings
    for part in full_key.split(".")[:-1]:
        fields = {f.name: f.type for f in dataclasses.fields(kind)}
        kind = fields.get(part)
        if not dataclasses.is_dataclass(kind):
            return []
    return [f.name for f in dataclasses.fields(kind)]


if __name__ == "__main__":
    sys.exit(main())
