"""The tensors of a checkpoint, made from the headers of its files when they are asked for.

Merged models mostly have equal headers. So what headers say, names, dtypes and shapes, is shared by
such models; a model of its own has only the tensors that a plan asks for.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cached_property
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


class HeaderContents:
    """What the headers of a checkpoint's files say: ``entries``, in the order of their data, and
    the number of the file of each. Checkpoints with equal headers share it."""

    def __init__(self, entries: Mapping[str, Described], file_numbers: Mapping[str, int]) -> None:
        self.entries = entries
        self.file_numbers = file_numbers
        self.known_plain: set[Hashable] = set()
        """Hints (`QuantisationHints`) with which no tensor was found to be quantised."""

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of all tensors."""
        return {name: entry.shape for name, entry in self.entries.items()}


class StoredTensors(Mapping[str, StoredTensor]):
    """The tensors that ``contents`` describes, in ``files``."""

    def __init__(self, contents: HeaderContents, files: Sequence[StoredFile]) -> None:
        self.contents = contents
        self._files = files
        self.located: dict[str, StoredTensor] = {}
        """Those that were asked for."""

    def __getitem__(self, name: str) -> StoredTensor:
        found = self.located.get(name)
        if found is None:
            file = self._files[self.contents.file_numbers[name]]
            found = self.located[name] = file.tensor(name)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.contents.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.contents.entries)

    def __len__(self) -> int:
        return len(self.contents.entries)


def described(tensors: Mapping[str, StoredTensor]) -> Mapping[str, Described]:
    """Dtypes and shapes of ``tensors``, none of which is made for it."""
    return tensors.contents.entries if isinstance(tensors, StoredTensors) else tensors


def located(tensors: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    """Those of ``tensors`` that were asked for, or whose locations are known anyway."""
    return tensors.located if isinstance(tensors, StoredTensors) else tensors


def shapes_of(tensors: Mapping[str, StoredTensor]) -> Mapping[str, tuple[int, ...]]:
    """The shapes of ``tensors``; one object for checkpoints with equal headers."""
    if isinstance(tensors, StoredTensors):
        return tensors.contents.shapes
    return {name: tensor.shape for name, tensor in tensors.items()}
