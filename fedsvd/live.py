"""How many bytes of tensors stand in memory at once, while operations run on fake tensors."""

import weakref
from functools import partial
from typing import Any, final

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@final
class Live(TorchDispatchMode):
    """Counts the storages that operations make until nothing holds them any more.

    `now` and `most` are bytes, the latter since `restart`. What stood before is not among them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._held: dict[int, tuple[int, Any]] = {}

    def restart(self) -> None:
        """Let `most` be that from here on."""
        self.most = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return what the operation gives, and note its storages."""
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if _is(t)}
        for tensor in tree_leaves(out):
            if _is(tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given:
                    self._enter(storage)
        return out

    def _enter(self, storage: UntypedStorage) -> None:
        key = storage._cdata
        if key in self._held:
            return
        size = storage.nbytes()
        self._held[key] = size, weakref.ref(storage, partial(self._leave, key))
        self.now += size
        self.most = max(self.most, self.now)

    def _leave(self, key: int, _: object) -> None:
        size, _ = self._held.pop(key, (0, None))
        self.now -= size


def _is(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout.__str__() == "torch.strided"
