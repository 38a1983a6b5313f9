"""A model as the planner sees it: named tensors, stored on disk or made by an earlier stage."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.graph.graph import GraphBuilder, Load, Merge
from mergeloom.planners.models.architecture import Architecture, infer, output_head, token_embedding
from mergeloom.planners.models.checkpoint import Checkpoint

Shape = tuple[int, ...]


class Model(Protocol):
    """What merges take their inputs from; ``name`` is how the configuration calls it."""

    @property
    def name(self) -> str: ...

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def architecture(self) -> Architecture: ...

    def __contains__(self, tensor: str) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...

    def shape(self, tensor: str) -> Shape: ...

    def dtype(self, tensor: str) -> DType: ...

    def node(self, builder: GraphBuilder, tensor: str, rows: int | None = None) -> Load | Merge:
        """The task that yields a tensor, or its first ``rows`` rows."""
        ...


@dataclass(frozen=True)
class StoredModel:
    """A model that is a checkpoint on disk."""

    name: str
    checkpoint: Checkpoint

    @property
    def config(self) -> Mapping[str, Any]:
        return self.checkpoint.config

    @cached_property
    def architecture(self) -> Architecture:
        return infer(self.checkpoint.tensors, self.checkpoint.config)

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.checkpoint.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.checkpoint.tensors)

    def shape(self, tensor: str) -> Shape:
        return self.checkpoint.tensors[tensor].shape

    def dtype(self, tensor: str) -> DType:
        return self.checkpoint.tensors[tensor].dtype

    def node(self, builder: GraphBuilder, tensor: str, rows: int | None = None) -> Load:
        stored = self.checkpoint.tensors[tensor]
        if rows is not None:
            stored = stored.rows(range(rows))
        return builder.load_bytes(stored.bytes, stored.dtype, stored.shape, tensor)


@dataclass(frozen=True)
class StagedModel:
    """A model that an earlier document of the same file makes; it never exists on disk."""

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, OutputTensor]
    directory: Path | None = None
    """Where the tokenizer and the other small files are that it would have."""

    @cached_property
    def architecture(self) -> Architecture:
        return infer(self.tensors, self.config)

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def shape(self, tensor: str) -> Shape:
        return self.tensors[tensor].merge.shape

    def dtype(self, tensor: str) -> DType:
        return self.tensors[tensor].dtype

    def node(self, builder: GraphBuilder, tensor: str, rows: int | None = None) -> Merge:
        merge = self.tensors[tensor].merge
        assert rows is None or rows == merge.shape[0], "stages are not truncated"
        return merge


def is_tied(model: Model) -> bool:
    """Whether the model's output head is its token embedding: declared so, or no head is there."""
    for config in (model.config, model.config.get("text_config")):
        if isinstance(config, Mapping) and config.get("tie_word_embeddings") is True:
            return True
    return output_head(model) is None and token_embedding(model) is not None


def tied_names(models: Collection[Model]) -> tuple[str | None, str | None]:
    """Names of head and embedding among ``models``, where any has them."""
    head = next((name for model in models if (name := output_head(model))), None)
    embedding = next((name for model in models if (name := token_embedding(model))), None)
    return head, embedding


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of the output: ``merge`` rounded to ``dtype``."""

    name: str
    merge: Merge
    dtype: DType

    @property
    def nbytes(self) -> int:
        return self.dtype.nbytes(math.prod(self.merge.shape))
