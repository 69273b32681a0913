"""The public words of labels, as tokens."""

from typing import Any

from fedsvd.data.task import Task
from fedsvd.data.tokens import Tokens, tokenise
from fedsvd.errors import InputError
from fedsvd.settings import Settings


def label_tokens(settings: Settings, task: Task, tokenizer: Any) -> Tokens:
    """Return `data.label_texts` as tokens with their labels, label by label.

    Raises InputError unless there is a list of texts for each label, of which some token is left.
    """
    label_texts = settings.data.label_texts
    if label_texts is None or len(label_texts) != task.classes or not all(label_texts):
        raise InputError(
            f"data.label_texts: what starts from texts needs a list of texts for each of the "
            f"{task.classes} labels ({', '.join(task.label_names)})"
        )
    texts = [text for own in label_texts for text in own]
    labels = [k for k, own in enumerate(label_texts) for _ in own]
    tokens = tokenise(tokenizer, [(t,) for t in texts], labels, settings.model.max_length)
    if tokens.empty:
        raise InputError(f"data.label_texts: {texts[tokens.empty[0]]!r} gives no tokens")
    return tokens
