"""The ServerApp and ClientApp for Flower's own runtimes: simulation by `flwr run .`, deployment.

    flwr run . --run-config 'overrides="+experiment=quickstart rounds=2"'

`overrides` are those of `python -m fedsvd.run`; `server` holds further ones that only the server
follows, such as where its data are. On a node of a deployment the policy of its owner decides what of
them it follows (fedsvd/node/). See docs/deployment.md.
"""

import functools
import os
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from omegaconf import DictConfig, OmegaConf

from fedsvd.client.app import make_client_app
from fedsvd.composing import compose
from fedsvd.config import from_config
from fedsvd.engines.flower import CLIENT, FlowerGrid
from fedsvd.errors import InputError
from fedsvd.execute import execute
from fedsvd.node import app as node
from fedsvd.node.proposal import OPEN, changed, overrides_in, plain
from fedsvd.node.serve import pinned_clientapp
from fedsvd.records import CONFIG
from fedsvd.settings import Settings
from fedsvd.terminal import complain, one_line

server_app = ServerApp()
client_app = node.NodeApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the configured rounds on the nodes of `grid`; the run folder is the server's."""
    given = overrides_in(context.run_config)
    folder = str(context.run_config.get("folder", "")) or f"outputs/flower/{context.run_id}"
    more = overrides_in(context.run_config, "server")
    config = compose([*given, *more])
    check_server_only(compose(given), config)
    given += more
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
    """Train one round as fedsvd.client.app does; on a node, within its policy and its budget."""
    if not node.simulates(context):
        return node.train(message, context)
    return make_client_app(simulated(context))(message, context)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the client's own model; on a node, only if its policy lets that out."""
    if not node.simulates(context):
        return node.evaluate(message, context)
    return make_client_app(simulated(context))(message, context)


@client_app.query()
def query(message: Message, context: Context) -> Message:
    """Say which client this node is."""
    told = ConfigRecord({CLIENT: node.holder_of(context)})
    return Message(RecordDict({CONFIG: told}), reply_to=message)


def simulated(context: Context) -> Settings:
    """Return the settings of a client of Flower's simulation: those of the run."""
    given = overrides_in(context.run_config) + overrides_in(context.run_config, "server")
    settings = _settings(tuple(given))
    if settings.partition.name == "own":
        raise InputError(
            "partition: 'own' needs a deployment; a simulation's clients share one disk"
        )
    return settings


@functools.lru_cache(maxsize=1)
def _settings(given: tuple[str, ...]) -> Settings:
    config = compose(list(given))
    return from_config(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


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
