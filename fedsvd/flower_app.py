"""The ServerApp and ClientApp for Flower's own runtimes: simulation by `flwr run .`, deployment.

    flwr run . --run-config 'overrides="+experiment=quickstart rounds=2"'

`overrides` are those of `python -m fedsvd.run`. A node's own `overrides` (`--node-config`) come
after them, so that whoever runs a node has the last word on what it does: where its data is, how
much it adds of noise. See docs/deployment.md.
"""

import functools
import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from omegaconf import OmegaConf

from fedsvd.client.app import make_client_app
from fedsvd.client.worker import get_worker
from fedsvd.composing import compose
from fedsvd.config import from_config
from fedsvd.engines.flower import CLIENT, FlowerGrid
from fedsvd.errors import InputError
from fedsvd.execute import execute
from fedsvd.records import CONFIG
from fedsvd.settings import Settings
from fedsvd.terminal import complain, one_line

ROUNDS = "rounds-taken"  # in a node's state: how often it has trained in this run

server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the configured rounds on the nodes of `grid`; the run folder is the server's."""
    given = _overrides(context.run_config)
    folder = str(context.run_config.get("folder", "")) or f"outputs/flower/{context.run_id}"
    config = compose(given)
    settings = from_config(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    patience = float(context.run_config.get("patience", 300.0))
    timeout = float(context.run_config.get("timeout", 0.0)) or None
    engine = FlowerGrid(grid, settings.clients.number, patience, timeout)
    try:
        execute(config, Path(folder).expanduser(), given, engine)
    except InputError as error:
        complain(f"error: {one_line(str(error))}")
        raise


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round as fedsvd.client.app does, unless the node's bound on rounds is reached."""
    settings = settings_of(context)
    if settings.partition.name == "own":
        _count(settings, context)
    return make_client_app(settings)(message, context)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the node's own model."""
    return make_client_app(settings_of(context))(message, context)


@client_app.query()
def query(message: Message, context: Context) -> Message:
    """Say which client this node is."""
    told = ConfigRecord({CLIENT: int(context.node_config["partition-id"])})
    return Message(RecordDict({CONFIG: told}), reply_to=message)


def settings_of(context: Context) -> Settings:
    """Return the settings of a node: the run's overrides, then its own."""
    settings = _settings(
        (*_overrides(context.run_config), *_overrides(context.node_config)),
    )
    if settings.partition.name != "own":
        return settings
    holder = int(context.node_config["partition-id"])
    return replace(settings, partition=replace(settings.partition, holder=holder))


@functools.lru_cache(maxsize=1)
def _settings(given: tuple[str, ...]) -> Settings:
    config = compose(list(given))
    return from_config(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


def _overrides(config: Mapping[str, Any]) -> list[str]:
    return shlex.split(str(config.get("overrides", "")))


def _count(settings: Settings, context: Context) -> None:
    """Count this round in the node's state; InputError beyond what its noise was calibrated for.

    The server's ledger is not proof for a node: it keeps its own account of the bound.
    """
    kept = context.state.metric_records.get(ROUNDS)
    taken = 0 if kept is None else int(kept["n"])  # type: ignore[arg-type]
    bound = get_worker(settings).plan.rounds_bound
    if settings.privacy.unit == "example" and taken >= bound:
        raise InputError(f"this node has trained in {taken} rounds, all that its budget allows")
    context.state.metric_records[ROUNDS] = MetricRecord({"n": taken + 1})
