"""The ServerApp and ClientApp for Flower's own runtimes: simulation by `flwr run flower`, deployment.

    flwr run flower --run-config 'rounds=2 strategy="ffa"'

The common settings have keys of their own (flower/pyproject.toml); `overrides` are those of
`python -m fedsvd.run`; `server` holds further ones that only the server follows, such as where its
data are; `mods` are ClientApp mods of a simulation. On a node of a deployment the policy of its owner
decides what of them it follows (fedsvd/node/). See docs/deployment.md.
"""

import functools
import os
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from omegaconf import DictConfig

from fedsvd.client.app import make_client_app
from fedsvd.composing import checked, compose
from fedsvd.engines.flower import CLIENT, NODES, FlowerGrid, simulated_nodes
from fedsvd.errors import InputError
from fedsvd.execute import execute
from fedsvd.node import app as node
from fedsvd.node.mods import find_mod, with_mods
from fedsvd.node.proposal import OPEN, changed, for_nodes, overrides_in, plain, setting
from fedsvd.node.serve import pinned_clientapp
from fedsvd.records import BUDGET, CONFIG
from fedsvd.settings import Settings
from fedsvd.settings.clients import AUTO
from fedsvd.terminal import complain, one_line

server_app = ServerApp()
client_app = node.NodeApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the configured rounds on the nodes of `grid`; the run folder is the server's."""
    given = overrides_in(context.run_config)
    folder = str(context.run_config.get("folder", "")) or f"outputs/flower/{context.run_id}"
    more = overrides_in(context.run_config, "server")
    patience = float(context.run_config.get("patience", 300.0))
    if "clients.number" not in map(setting, given) and (nodes := simulated_nodes(grid, patience)):
        given = for_nodes(given, nodes)
    config = compose([*given, *more])
    check_server_only(compose(given), config)
    given += more
    settings = checked(config)
    timeout = float(context.run_config.get("timeout", 0.0)) or None
    auto = settings.training.microbatch_tokens == AUTO
    engine = FlowerGrid(grid, settings.clients.number, patience, timeout, composes=auto)
    try:
        execute(config, Path(folder).expanduser(), given, engine)
    except InputError as error:
        complain(f"error: {one_line(str(error))}")
        raise


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round as fedsvd.client.app does; on a node, within its policy and its budget."""
    if not node.simulates(context):
        return node.train(message, context)
    return _simulate(message, context)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the client's own model; on a node, only if its policy lets that out."""
    if not node.simulates(context):
        return node.evaluate(message, context)
    return _simulate(message, context)


def _simulate(message: Message, context: Context) -> Message:
    """Return a simulated client's answer, through the run's mods."""
    paths = str(context.run_config.get("mods", "")).split()
    mods = [find_mod("mods", path) for path in paths]
    settings = simulated(context)
    if settings.training.microbatch_tokens == AUTO:  # the server has measured
        tokens = int(message.content.config_records[CONFIG][BUDGET])  # type: ignore[arg-type]
        settings = settings.with_budget(tokens)
    return with_mods(make_client_app(settings), mods)(message, context)


@client_app.query()
def query(message: Message, context: Context) -> Message:
    """Say which client this node is, and in a simulation of how many."""
    told = ConfigRecord({CLIENT: node.holder_of(context)})
    if node.simulates(context):
        told[NODES] = int(context.node_config["num-partitions"])
    return Message(RecordDict({CONFIG: told}), reply_to=message)


def simulated(context: Context) -> Settings:
    """Return the settings of a client of Flower's simulation: those of the run."""
    settings = _settings(
        tuple(overrides_in(context.run_config)),
        tuple(overrides_in(context.run_config, "server")),
        int(context.node_config.get("num-partitions", 0)),
    )
    if settings.partition.name == "own":
        raise InputError(
            "partition: 'own' needs a deployment; a simulation's clients share one disk"
        )
    return settings


@functools.lru_cache(maxsize=1)
def _settings(given: tuple[str, ...], server: tuple[str, ...], nodes: int) -> Settings:
    config = compose([*for_nodes(given, nodes), *server])
    return checked(config)


def check_server_only(config: DictConfig, whole: DictConfig) -> None:
    """Raise InputError if what is meant for the server alone changes what its nodes work with.

    They never see it, so both must stand in `overrides`. Where a model's files are may differ.
    """
    for section, key in changed(plain(config), plain(whole)):
        place = section == "model" and key in ("name", "package", "folder", "revision")
        if place or (section, key) == ("data", "label_texts"):
            continue
        if key in OPEN.get(section, frozenset()):
            told = f"{section}.{key}" if section else key
            raise InputError(f"server: {told} concerns the nodes too; give it in overrides")


if __name__ == "__main__":  # what a SuperNode that `python -m fedsvd.node serve` started runs
    pinned_clientapp(client_app)
