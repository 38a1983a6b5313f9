"""The tensors of a checkpoint, made from the headers of its files when they are asked for.

Merged models mostly have equal headers. So what headers say, names, dtypes and shapes, is shared by
such models; a model of its own has only the tensors that a plan asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.graph.stored_tensor import StoredTensor


class Described(Protocol):
    """What is known of a tensor wherever it is stored."""

    @property
    def dtype(self) -> DType: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


class StoredFile(Protocol):
    """A file of tensors."""

    def tensor(self, name: str) -> StoredTensor: ...


class StoredTensors(Mapping[str, StoredTensor]):
    """The tensors described by ``entries``, in the order of their data; ``files`` has the file of
    each."""

    def __init__(self, entries: Mapping[str, Described], files: Mapping[str, StoredFile]) -> None:
        self.entries = entries
        self._files = files
        self._made: dict[str, StoredTensor] = {}

    def __getitem__(self, name: str) -> StoredTensor:
        found = self._made.get(name)
        if found is None:
            found = self._made[name] = self._files[name].tensor(name)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def described(tensors: Mapping[str, StoredTensor]) -> Mapping[str, Described]:
    """Dtypes and shapes of ``tensors``, none of which is made for it."""
    return tensors.entries if isinstance(tensors, StoredTensors) else tensors
