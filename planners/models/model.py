"""Models for planners: named tensors, stored on disk or computed by an earlier stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from functools import cached_property
from typing import Any, Protocol

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.records import dataclass, record
from mergeloom.engine.graph.graph import GraphBuilder, Load, Merge, copied_dtype
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.storage.folder import Folder
from mergeloom.planners.models.architecture import Architecture, infer_architecture
from mergeloom.planners.models.checkpoint import Checkpoint
from mergeloom.planners.models.rows import computed_rows, stored_rows
from mergeloom.planners.models.sameness import equal_bytes
from mergeloom.planners.models.stored_tensors import Described
from mergeloom.planners.models.token_weights import TokenWeights, token_weights
from mergeloom.planners.vocabulary.tokenizer import Tokenizer

Shape = tuple[int, ...]
Entry = tuple[str, DType, Shape]


@dataclass(frozen=True, slots=True)
class TensorLocation:
    """A tensor on disk: its stored name, and the location of its bytes."""

    name: str
    entry: StoredTensor


class Model(Protocol):
    """An input of merges; ``name`` is its name in the configuration."""

    @property
    def name(self) -> str: ...

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def architecture(self) -> Architecture: ...

    @property
    def tokens(self) -> TokenWeights:
        """Its embedding and output head."""
        ...

    def stored(self, tensor: str) -> TensorLocation | None:
        """The location of a stored tensor; ``None`` if it is computed."""
        ...

    def __contains__(self, tensor: str) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...

    def shape(self, tensor: str) -> Shape: ...

    def dtype(self, tensor: str) -> DType: ...

    def node(
        self, builder: GraphBuilder, tensor: str, rows: Sequence[int] | None = None
    ) -> Load | Merge:
        """The task that yields a tensor, or ``rows`` of it: indices along the first dimension
        longer than 1, where -1 is a missing row (zeros)."""
        ...


@dataclass(frozen=True)
class StoredModel:
    """A model in a checkpoint on disk; ``infer`` is `infer_architecture`, possibly with a cache."""

    name: str
    checkpoint: Checkpoint
    infer: Callable[[Mapping[str, Shape], Mapping[str, Any]], Architecture] = field(
        default=infer_architecture, kw_only=True, repr=False, compare=False
    )

    @property
    def config(self) -> Mapping[str, Any]:
        return self.checkpoint.config

    @property
    def described(self) -> Mapping[str, Described]:
        """Dtypes and shapes; one object for models with equal headers."""
        return self.checkpoint.described

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Shapes; one object for models with equal headers."""
        return self.checkpoint.shapes

    @cached_property
    def architecture(self) -> Architecture:
        return self.infer(self.shapes, self.config)

    @cached_property
    def tokens(self) -> TokenWeights:
        entries = self.checkpoint.tensors
        return token_weights(
            self.architecture,
            self.config,
            self.shape,
            lambda one, other: equal_bytes(entries[one], entries[other]),
        )

    def stored(self, tensor: str) -> TensorLocation | None:
        return TensorLocation(tensor, self.checkpoint.tensors[tensor])

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.checkpoint.described

    def __iter__(self) -> Iterator[str]:
        return iter(self.checkpoint.described)

    def shape(self, tensor: str) -> Shape:
        return self.checkpoint.described[tensor].shape

    def dtype(self, tensor: str) -> DType:
        return self.checkpoint.described[tensor].dtype

    def node(
        self, builder: GraphBuilder, tensor: str, rows: Sequence[int] | None = None
    ) -> Load | Merge:
        stored = self.checkpoint.tensors[tensor]
        if rows is not None:
            stored = stored_rows(stored, rows)
        return builder.load_bytes(stored.bytes, stored.dtype, stored.shape, tensor)


def shapes_of_model(model: Model) -> Mapping[str, Shape]:
    """The shapes of all tensors of a model."""
    if isinstance(model, StoredModel):
        return model.shapes
    return {name: model.shape(name) for name in model}


@dataclass(frozen=True)
class PlannedModel:
    """A model computed by an earlier document of the configuration; it is never written to disk."""

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, OutputTensor]
    folder: Folder | None = None
    """The folder whose tokenizer and other small files it has."""
    tokenizer: Callable[[], Tokenizer | None] = lambda: None
    """Its tokenizer, read on demand."""
    has_own_tokenizer: bool = False
    """Whether its tokenizer differs from the files in ``folder``."""

    @cached_property
    def architecture(self) -> Architecture:
        return infer_architecture(shapes_of_model(self), self.config)

    @cached_property
    def tokens(self) -> TokenWeights:
        def same(one: str, other: str) -> bool:
            return self.tensors[one].merge is self.tensors[other].merge

        return token_weights(self.architecture, self.config, self.shape, same)

    def stored(self, tensor: str) -> None:
        return None

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def shape(self, tensor: str) -> Shape:
        return self.tensors[tensor].shape

    def dtype(self, tensor: str) -> DType:
        return self.tensors[tensor].dtype

    def node(
        self, builder: GraphBuilder, tensor: str, rows: Sequence[int] | None = None
    ) -> Load | Merge:
        merge = self.tensors[tensor].merge
        return merge if rows is None else computed_rows(builder, merge, rows)


@record(frozen=True, slots=True)
class OutputTensor:
    """One tensor of the output: ``merge`` rounded to ``dtype``, or an additional part of the
    kernel's result (`Write.part`).

    ``header_entries`` are the entries of the file's header for its bytes, if they differ from that:
    another dtype or shape, or several consecutive tensors.
    """

    name: str
    merge: Merge
    dtype: DType
    part: int = 0
    header_entries: tuple[Entry, ...] = ()

    @property
    def shape(self) -> Shape:
        """The shape of the merge."""
        return self.merge.shape

    @property
    def is_copied(self) -> bool:
        """Whether its bytes are those of an input."""
        return copied_dtype(self.merge) == self.dtype

    @property
    def header(self) -> tuple[Entry, ...]:
        """Names, dtypes and shapes as in the header of the output file."""
        return self.header_entries or ((self.name, self.dtype, self.shape),)

    @property
    def nbytes(self) -> int:
        return self.dtype.nbytes(math.prod(self.shape))


_assign = object.__setattr__


class LazyTensor(OutputTensor):
    """An output tensor whose merge is made, by ``make``, when it is first asked for."""

    __slots__ = ("_make", "_shape")

    part = 0
    header_entries = ()

    def __init__(self, name: str, shape: Shape, dtype: DType, make: Callable[[], Merge]) -> None:
        _assign(self, "name", name)  # to records, which the type checker takes to be guarded
        _assign(self, "dtype", dtype)
        self._shape, self._make = shape, make

    @property
    def shape(self) -> Shape:
        return self._shape

    @property
    def is_copied(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Merge:
        if name != "merge":
            raise AttributeError(name)
        merge = self._make()
        _assign(self, "merge", merge)
        return merge
