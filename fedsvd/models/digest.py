"""What says that two backbones, or two tokenisers, are the same: digests of what they hold."""

import hashlib
import json
from typing import Any

import torch
from torch import nn

from fedsvd.models.reported import pooler


def weights_digest(backbone: nn.Module) -> str:
    """Return the SHA-256 of names, shapes and values of a plain backbone's weights.

    How they were stored is not in it, nor a pooler, which no hidden state depends on.
    """
    found = hashlib.sha256()
    for name, value in sorted(backbone.state_dict().items()):
        if not pooler(name):
            found.update(f"{name}|{tuple(value.shape)}|{value.dtype}|".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()


def vocabulary_digest(tokenizer: Any) -> str:
    """Return the SHA-256 of a tokeniser's tokens and their ids."""
    ids = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()
