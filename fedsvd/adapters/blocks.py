"""The transformer blocks of a backbone, found by where its adapted layers are."""

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Blocks:
    """A list of modules that run one after another: BERT's `encoder.layer`, Llama's `layers`, ..."""

    path: str
    modules: nn.ModuleList

    def number(self, layer: str) -> int | None:
        """Return which block (from 0) holds the layer of this path, None if none does."""
        head = f"{self.path}."
        return int(layer[len(head) :].split(".")[0]) if layer.startswith(head) else None


def find_blocks(backbone: nn.Module, layers: Collection[str]) -> Blocks | None:
    """Return the longest list of modules that holds some of the layers, or None if none does.

    Lists within another such list do not count (experts of a block); of several that are equally
    long it is the last, which in an encoder-decoder is the decoder.
    """
    lists = {n: m for n, m in backbone.named_modules() if isinstance(m, nn.ModuleList)}
    holding = [n for n in lists if any(layer.startswith(f"{n}.") for layer in layers)]
    outer = [n for n in holding if not any(n.startswith(f"{other}.") for other in holding)]
    if not outer:
        return None
    most = max(len(lists[n]) for n in outer)
    path = [n for n in outer if len(lists[n]) == most][-1]
    return Blocks(path, lists[path])
