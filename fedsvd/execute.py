"""A composed configuration, from its check to a run's summary."""

import contextlib
import logging
import re
import shlex
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsvd import interrupt
from fedsvd.checkpoints.resuming import AUTO, FILES, check_folder, continued
from fedsvd.config import from_config
from fedsvd.data.needed import check_needed
from fedsvd.errors import InputError, NothingTrained, RunError
from fedsvd.files import private_folder
from fedsvd.logs import NAME as LOG_NAME
from fedsvd.logs import logged, verbose_in_hydra
from fedsvd.rounds.journal import NAME
from fedsvd.terminal import complain, say

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy as FlowerStrategy

    from fedsvd.engines.base import Engine
    from fedsvd.settings import Settings


LIBRARIES = ("flwr", "transformers", "datasets", "opacus", "peft")


def execute(
    config: Any, folder: Path, overrides: list[str], grid: "Engine | None" = None
) -> dict[str, Any]:
    """Check a composed configuration, run it, leave everything in `folder`; return the summary.

    Clients run on `grid`, by default that of the configured engine. Raises InputError before any
    work if something cannot be used, and then leaves no empty folder behind.
    """
    asked = time.perf_counter()
    with (
        logged(verbose_in_hydra()) as log,
        contextlib.ExitStack() as after,
        _no_empty_folder(folder),
    ):
        composed, resume = _composed(config, folder, overrides)
        settings = from_config(composed)
        check_folder(folder, resume)
        if settings.partition.name != "own":
            check_needed(settings)
        if not (folder / "summary.json").exists():  # what follows may take long to say anything
            say(f"loading task {settings.data.name} and model {settings.model.name}")
        from fedsvd.surroundings import as_found

        after.enter_context(as_found())
        quiet()
        from fedsvd.checkpoints.resume import begin, finished, open_run
        from fedsvd.client.worker import forget
        from fedsvd.experiment import prepare, train
        from fedsvd.recorders.build import check_recorders, make_recorder
        from fedsvd.recorders.screen import Screen

        settings, until, saved = open_run(folder, settings, resume is not None)
        done = finished(folder, until) if saved else None
        if done is not None:
            say(f"{folder}: is finished, after {done['rounds_completed']} rounds")
            return done
        check_recorders(settings.recorder)
        forget()  # an earlier run's model may have been left in any state
        run = prepare(settings, _strategy(settings, overrides), grid)
        run.rounds, run.asked = until, asked
        composed["training"]["microbatch_tokens"] = run.settings.training.microbatch_tokens
        run.command = shlex.join(["python", "-m", "fedsvd.run", *overrides])
        if settings.privacy.unit != "none":
            _close(folder)
        resumed = begin(run, folder)
        screen = Screen(folder)
        recorder = make_recorder(settings.recorder, folder, _yaml(composed), screen, resumed)
        log.begin(folder)
        with contextlib.ExitStack() as closing, _how_to_go_on(folder):
            for part in (run.grid, run.journal, recorder):  # the last one is closed first
                closing.callback(part.close)
            return train(run, recorder, folder, resumed)


def _close(folder: Path) -> None:
    """Keep others out of the folder of a private run, before anything of it is there.

    Losses, counts, label mixes and who took part are in what a run writes. A run that goes on leaves
    its folder as it is; a folder that holds other things is not closed, and that is said.
    """
    names = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if all(n in ("trial.log", LOG_NAME) or n.startswith("unfinished-") for n in names):
        private_folder(folder)
    elif not names & {*FILES, NAME} and folder.stat().st_mode & 0o077:
        complain(
            f"warning: {folder}: holds other things and stays open to others, with what this run "
            "tells of private data; checkpoints/ alone is closed (docs/data_privacy.md)"
        )


def _composed(config: Any, folder: Path, overrides: list[str]) -> tuple[dict[str, Any], str | None]:
    """Return the configuration as plain values, and what `resume` says.

    A run that goes on keeps its own configuration, with the overrides put over it.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from fedsvd.composing import explain

    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise InputError(f"{', '.join(missing)}: must be given, as KEY=VALUE")
        composed: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise InputError(explain(error)) from error
    resume = composed.pop("resume", None)
    if resume not in (None, AUTO):
        composed = continued(folder, composed, overrides)
    return composed, resume


def _strategy(settings: "Settings", overrides: Sequence[str]) -> "FlowerStrategy":
    """Return the strategy, if it can be used under these settings and with this adapter."""
    from fedsvd.composing import config_folder
    from fedsvd.strategies.build import build_strategy
    from fedsvd.strategies.pairs import check_pair
    from fedsvd.strategies.stock import notes
    from fedsvd.strategies.use import check_use

    given = [m[1] for o in overrides if (m := re.match(r"\+*strategy\.(\w+)=", o))]
    strategy = build_strategy(settings.strategy, given)
    check_use(settings, strategy)
    check_pair(settings, strategy, config_folder())
    for note in notes(settings, strategy):
        complain(f"warning: {note}")
    return strategy


def _yaml(composed: dict[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(composed))


@contextlib.contextmanager
def _no_empty_folder(folder: Path) -> Iterator[None]:
    """Take an empty run folder away when the input is refused, and an empty outputs/DATE with it."""
    try:
        yield
    except InputError:
        date, place = folder.absolute().parent, [folder]
        if date.parent.name == "outputs" and re.fullmatch(r"\d{4}-\d\d-\d\d", date.name):
            place += [date, date.parent]  # Hydra's own by default (configs/config.yaml)
        for empty in place:
            with contextlib.suppress(OSError):  # not there, or not empty
                empty.rmdir()
        raise


@contextlib.contextmanager
def _how_to_go_on(folder: Path) -> Iterator[None]:
    """Add the command that continues the run to what ended it, if there is a checkpoint."""
    try:
        yield
    except (interrupt.Interrupted, RunError) as stop:
        rest = not isinstance(stop, NothingTrained)  # there is nothing left to do
        if rest and (folder / "checkpoints" / "last.safetensors").exists():
            stop.args = (
                f"{stop}; to go on: python -m fedsvd.run resume={shlex.quote(str(folder))}",
            )
        raise


def quiet() -> None:
    """Keep libraries' advice off the screen, unless hydra.verbose asks for it; ours stays."""
    asked = {n: logging.getLogger(n).level == logging.DEBUG for n in ("", *LIBRARIES)}
    import flwr.common.logger  # noqa: F401 -- sets its level to DEBUG when it is first imported

    asked["flwr"] = verbose_in_hydra("flwr")
    for name in LIBRARIES:
        wanted = asked[""] or asked[name]
        logging.getLogger(name).setLevel(logging.DEBUG if wanted else logging.ERROR)
    for name in LIBRARIES[1:]:
        warnings.filterwarnings("ignore", module=rf"{name}\..*")
