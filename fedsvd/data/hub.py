"""Whether the Hugging Face hub can be reached, asked once, so that nobody waits for its retries."""

import contextlib
import functools
import logging
from collections.abc import Iterator
from pathlib import Path

from fedsvd.data.formats import format_of

SECONDS = 5.0  # for one answer to the one question


def may_be_id(name: str) -> bool:
    """Return whether a name could be one of the hub's data sets: OWNER/NAME, and no data file's."""
    path = Path(name).expanduser()
    return name.count("/") == 1 and not path.is_absolute() and format_of(path) is None


@functools.cache
def unreachable() -> str | None:
    """Return why the hub cannot be reached from this process, or None if it answers.

    Its client would try every file six times, half a minute each, and warn each time.
    """
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    try:
        answer = get_session().head(constants.ENDPOINT, timeout=SECONDS, follow_redirects=False)
    except Exception as error:  # of the client's transport, whichever that is
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        return f"the hub at {constants.ENDPOINT} cannot be reached: {reason}"
    if answer.status_code >= 500:
        return f"the hub at {constants.ENDPOINT} answers with status {answer.status_code}"
    return None


@contextlib.contextmanager
def hub_files() -> Iterator[str | None]:
    """Have the hub's files read from its cache alone within the block if it cannot be reached.

    Gives why it cannot, or None. The clients' warnings stay off the screen in either case.
    """
    import datasets.config
    from huggingface_hub import constants

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    why = unreachable()
    if why is None:
        yield None
        return
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield why
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def not_found(why: str | None, reason: str) -> str:
    """Return how the hub was tried in vain: it cannot be reached, or what its client said."""
    if why is None:
        return f"the hub was asked: {reason}"
    return f"{why}, and nothing of that name is in its cache"
