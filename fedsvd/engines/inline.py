"""The inline engine: clients run in this process, one after another."""

import traceback
from collections.abc import Sequence
from typing import final

from flwr.app import Message
from flwr.clientapp import ClientApp

from fedsvd.engines.base import Engine, error_reply
from fedsvd.errors import InputError


@final
class InlineGrid(Engine):
    """Calls an unmodified ClientApp for each message, in the messages' order."""

    def __init__(self, client_app: ClientApp, clients: int) -> None:
        super().__init__(clients)
        self._app = client_app

    def execute(self, messages: Sequence[Message]) -> list[Message]:
        """Return the ClientApp's replies."""
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        try:
            return self._app(message, self._contexts[message.metadata.dst_node_id])
        except InputError:
            raise
        except Exception as error:  # whatever a client's code raises is that client's failure
            return error_reply(message, "".join(traceback.format_exception_only(error)).strip())
