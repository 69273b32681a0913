"""ClientApps for the engines' tests, importable in a worker's process."""

import os
import time

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp


def adding_app(fail=None, die=None, marks=None):
    """Adds the client's number, and counts its calls in its state; fails or dies where told.

    `die` names the client whose first call kills its worker; `marks` is a folder that remembers.
    """
    app = ClientApp()

    @app.train()
    def train(message, context):
        k = context.node_config["partition-id"]
        if k == fail:
            raise RuntimeError("no")
        if k == die and not os.path.exists(f"{marks}/died"):
            open(f"{marks}/died", "w").close()
            os._exit(1)
        x = message.content["arrays"]["x"].numpy()
        seen = context.state.get("seen", MetricRecord({"n": 0}))
        context.state["seen"] = MetricRecord({"n": seen["n"] + 1})
        arrays = ArrayRecord({"x": Array(x + k)})
        metrics = MetricRecord(
            {"num-examples": 1, "seen": context.state["seen"]["n"], "process": os.getpid()}
        )
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


def sleeping_app(seconds):
    """Answers after some seconds."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        time.sleep(seconds)
        return Message(RecordDict(), reply_to=message)

    return app
