"""Formats of weight files: file names, and how to find the tensors in a file.

A format is a record; to support another one, write a function from a source to its tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Protocol

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.pieces import Range
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.storage.safetensors import Entry, HeaderReader
from mergeloom.engine.storage.source import Source
from mergeloom.planners.models.stored_tensors import Described

if TYPE_CHECKING:
    from mergeloom.engine.storage.torch_zip import StridedEntry


class WeightFile(Protocol):
    """One weight file: what it says of its tensors, in the order of their data, all in ``source``.

    The identity of the source covers all that is known without reading weights. ``metadata`` is the
    metadata in the file.
    """

    @property
    def source(self) -> Source: ...

    @property
    def entries(self) -> Mapping[str, Described]: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    def tensor(self, name: str) -> StoredTensor:
        """The location of a tensor."""
        ...


@dataclass(frozen=True, slots=True)
class SafetensorsWeights:
    """A safetensors file."""

    source: Source
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]

    def tensor(self, name: str) -> StoredTensor:
        """The location of a tensor."""
        dtype, shape, start, stop = self.entries[name]
        return StoredTensor(Range(self.source, start, stop - start), dtype, shape)


@dataclass(frozen=True, slots=True)
class TorchWeights:
    """A file written by torch.save."""

    source: Source
    entries: Mapping[str, StridedEntry]
    metadata: Mapping[str, str]

    def tensor(self, name: str) -> StoredTensor:
        """The location of a tensor."""
        entry = self.entries[name]
        place = entry.offset, entry.dtype, entry.shape, entry.strides
        return StoredTensor.strided(self.source, *place)


@dataclass(frozen=True, slots=True)
class LocatedWeights:
    """A file of another format, whose reader has located every tensor."""

    source: Source
    entries: Mapping[str, StoredTensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def tensor(self, name: str) -> StoredTensor:
        """The location of a tensor."""
        return self.entries[name]


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """The files of a checkpoint in one format.

    ``index`` is the name of the index file of shards, ``single`` that of a single-file checkpoint.
    Without either, files with one of ``suffixes`` are weights, except ``others``; ``several`` says
    whether there may be several unnumbered files.

    ``read`` reads the header of one file, unless it is already known. It raises
    `CheckpointError` if the file cannot be read or is malformed.
    """

    index: str
    single: str
    suffixes: tuple[str, ...]
    read: Callable[[Source, HeaderReader], WeightFile]
    several: bool = True
    others: frozenset[str] = frozenset()


def _read_safetensors(source: Source, headers: HeaderReader) -> WeightFile:
    header = headers.read(source)
    return SafetensorsWeights(source.identified(header.digest), header.entries, header.metadata)


def _read_torch(source: Source, headers: HeaderReader) -> WeightFile:
    from mergeloom.engine.storage.torch_zip import read_torch  # late: few checkpoints need it

    found = read_torch(source)
    source = source.identified(hashlib.blake2b(found.raw, digest_size=12).hexdigest())
    return TorchWeights(source, found.entries, {})


SAFETENSORS = WeightFormat(
    index="model.safetensors.index.json",
    single="model.safetensors",
    suffixes=(".safetensors",),
    read=_read_safetensors,
)

TORCH = WeightFormat(
    index="pytorch_model.bin.index.json",
    single="pytorch_model.bin",
    suffixes=(".bin", ".pt", ".pth", ".ckpt"),
    read=_read_torch,
    several=False,
    # Other files saved by training programs.
    others=frozenset(
        {"training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth"}
    ),
)

FORMATS = (SAFETENSORS, TORCH)
"""Supported formats, the preferred one first."""


def read_weights(source: Source, name: str, headers: HeaderReader) -> WeightFile:
    """The tensors of the file ``name``, in the format given by its suffix; ``headers`` are those
    already known.

    Raises:
        CheckpointError: the suffix is unknown, or the file cannot be read or is malformed.
    """
    how = next((how for how in FORMATS if name.endswith(how.suffixes)), None)
    if how is None:
        known = ", ".join(suffix for each in FORMATS for suffix in each.suffixes)
        raise CheckpointError(
            f"'{source.name}' is in no known weight format",
            remedy=f"names of files of weights end in {known}",
        )
    return how.read(source, headers)
