"""A SuperNode that runs the installed fedsvd, whatever app a server sends.

Flower gives a SuperNode the app of a run as a bundle, and its `flwr-clientapp` imports what that
bundle names, from the bundle: a server's code, before any policy is read. Here the processes that the
SuperNode starts find other commands first: a `flwr-clientapp` that installs no bundle and loads
`fedsvd.flower_app` of this environment, and nothing at all in place of the other kinds of tasks.
"""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flwr.clientapp import ClientApp

REFUSED = ("flwr-agentapp", "flwr-connector", "flwr-model", "flwr-serverapp", "flwr-simulation")


def serve(arguments: Sequence[str]) -> int:
    """Run flower-supernode with these arguments until it ends; return its exit status."""
    command = shutil.which("flower-supernode", path=_beside_python()) or "flower-supernode"
    with tempfile.TemporaryDirectory(prefix="fedsvd-node-") as folder:
        write_commands(Path(folder))
        path = f"{folder}{os.pathsep}{_beside_python()}"
        child = subprocess.Popen([command, *arguments], env={**os.environ, "PATH": path})
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                continue  # the terminal has told the SuperNode too, which ends in its own way


def _beside_python() -> str:
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def write_commands(folder: Path) -> None:
    """Write into `folder` the commands that a SuperNode's processes shall find."""
    ours = f'#!/bin/sh\nexec "{sys.executable}" -P -m fedsvd.flower_app "$@"\n'
    scripts = dict.fromkeys(REFUSED, "#!/bin/sh\nexit 1\n") | {"flwr-clientapp": ours}
    for name, text in scripts.items():
        path = folder / name
        path.write_text(text)
        path.chmod(stat.S_IRWXU)


def pinned_clientapp(app: ClientApp) -> None:
    """Be `flwr-clientapp`, but with this ClientApp and no bundle."""
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp
    from flwr.supernode.runtime import run_clientapp

    replaced = {
        "install_from_fab": lambda *args, **kwargs: None,
        "install_app_dependencies": lambda *args, **kwargs: None,
        "get_load_client_app_fn": lambda *args, **kwargs: lambda *names: app,
    }
    for name, value in replaced.items():
        if not callable(getattr(run_clientapp, name, None)):
            raise SystemExit(f"fedsvd.node: this Flower has no {name}; nothing runs")
        setattr(run_clientapp, name, value)
    flwr_clientapp()
