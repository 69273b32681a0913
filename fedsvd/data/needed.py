"""What data of a user's own must come with, asked for at once and before any file is read."""

from pathlib import Path

from fedsvd.data.hub import may_be_id
from fedsvd.errors import InputError
from fedsvd.settings import Settings
from fedsvd.settings.model import FIXED_HEADS

LABELS = "data.labels (under privacy: their names, in the order of indices, as publicly known)"
ENDINGS = "data.labels (under privacy: 0 to K - 1 for K endings of every row)"
SIZE = (
    "data.public_size (about how many examples all clients hold together; or "
    "privacy.public_counts=true: the counts are public)"
)
WORDS = (
    "data.label_texts (for each label a list of public words, as the head starts from them; or "
    "model.head_init=zeros)"
)


def check_needed(settings: Settings) -> None:
    """Raise InputError that names everything that the data lacks, with what each may be.

    Whether a hub's data set publishes its labels is known when it is there, so they are not asked for
    here.
    """
    data, privacy = settings.data, settings.privacy
    lacks: dict[str, str] = {}
    packaged = data.package is not None and data.file is not None
    path = None if data.path is None else Path(data.path).expanduser()
    if path is not None and not path.exists() and not may_be_id(str(data.path)):
        raise InputError(f"data.path: {data.path!r} does not exist")
    if path is None and data.hub is None and not packaged:
        lacks["data.path"] = "data.path (a folder, a file, or a hub id)"
    published = data.hub is not None if path is None else not path.exists()  # perhaps, by a hub
    if privacy.unit != "none" and data.labels is None and not published:
        if settings.labelled:
            lacks["data.labels"] = LABELS
        elif settings.task == "choice":
            lacks["data.labels"] = ENDINGS
    if privacy.unit == "example" and not privacy.public_counts and data.public_size is None:
        lacks["data.public_size"] = SIZE
    words = settings.model.head_start == "texts" and settings.model.head not in FIXED_HEADS
    if settings.labelled and words:
        if data.label_texts is None:
            lacks["data.label_texts"] = WORDS
        elif data.labels is not None and len(data.label_texts) != len(data.labels):
            raise InputError(
                f"data.label_texts: {len(data.label_texts)} lists of texts for "
                f"{len(data.labels)} labels; a head that starts from texts needs one for each"
            )
    if not lacks:
        return
    examples = {
        "data.path": "data.path=FOLDER", "data.labels": "'data.labels=[no,yes]'",
        "data.public_size": "data.public_size=N",
        "data.label_texts": "'data.label_texts=[[bad,poor],[good,fine]]'",
    }  # fmt: skip
    given = " ".join(examples[key] for key in lacks)
    raise InputError(f"data: needed too: {'; '.join(lacks.values())}. For example: {given}")
