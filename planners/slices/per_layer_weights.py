"""Weights outside the layers that have a part for each layer; parts are rearranged like layers.

    A's layers     0 1 2 3      embed_tokens_per_layer  [tokens, 4 parts]
    slices         A[0,2] B[1,3]
    the output's   A0 A1 B1 B2  each part from the model and layer that the layer is from

The reader gathers the parts. The sources at one position of all slices form one input, and the
inputs are merged as one tensor, like other weights before the layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import GraphBuilder, Load
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.planners.models.architecture import Architecture
from mergeloom.planners.models.model import Model, Shape
from mergeloom.planners.models.roles import layer_axis
from mergeloom.planners.models.token_weights import TokenWeights
from mergeloom.planners.slices.slices import LayerSource, Slice, TensorSources


@dataclass(frozen=True)
class GatheredModel:
    """A model with one weight that is gathered from several models; everything else is the
    first's."""

    first: Model
    models: tuple[str, ...]
    tensor: str
    gathered: StoredTensor

    @property
    def name(self) -> str:
        return " and ".join(self.models)

    @property
    def config(self) -> Mapping[str, Any]:
        return self.first.config

    @property
    def architecture(self) -> Architecture:
        return self.first.architecture

    @property
    def tokens(self) -> TokenWeights:
        return self.first.tokens

    def stored(self, tensor: str) -> None:
        return None

    def __contains__(self, tensor: str) -> bool:
        return tensor == self.tensor

    def __iter__(self) -> Iterator[str]:
        yield self.tensor

    def shape(self, tensor: str) -> Shape:
        return self.gathered.shape

    def dtype(self, tensor: str) -> DType:
        return self.gathered.dtype

    def node(self, builder: GraphBuilder, tensor: str, rows: int | None = None) -> Load:
        found = self.gathered if rows is None else self.gathered.rows(range(rows))
        return builder.load_bytes(found.bytes, found.dtype, found.shape, tensor)


def gather_parts(wanted: TensorSources, slices: Sequence[Slice]) -> TensorSources:
    """The sources of a weight that has a part for each layer, with parts gathered as in ``slices``.

    Raises:
        CheckpointError: it cannot be gathered.
    """
    filled = [part for part in slices if part.length]
    first = filled[0]
    columns = list(zip(*(part.sources for part in filled), strict=False))
    for part in filled:
        if len(part.sources) != len(first.sources) or part.base != first.base:
            raise CheckpointError(
                f"'{wanted.name}' has a part for each layer, and the slices have different numbers "
                "of sources, or another base",
                place=part.entry.place,
                remedy="give every slice the same number of sources in the same order",
            )
    sources = tuple(
        replace(column[0], model=_gathered(wanted.name, column, filled)) for column in columns
    )
    inputs = [(position, wanted.name) for position in range(len(sources))]
    return TensorSources.outside(wanted.name, replace(first, sources=sources), inputs)


def _gathered(name: str, sources: Sequence[LayerSource], slices: Sequence[Slice]) -> GatheredModel:
    parts = []
    for source, part in zip(sources, slices, strict=True):
        model, layers = source.model, source.tower.layers
        stored = model.stored(name) if name in model else None
        axis = layer_axis(name)
        if stored is None or axis is None or stored.entry.shape[axis] % layers:
            raise CheckpointError(
                f"'{name}' of '{model.name}' has a part for each of its {layers} layers and cannot "
                "be taken apart",
                place=part.entry.place,
                remedy="merge whole models",
            )
        size = stored.entry.shape[axis] // layers
        parts.append(stored.entry.narrow(axis, source.start * size, source.stop * size))
    try:
        joined = StoredTensor.join(parts, layer_axis(name) or 0)
    except ValueError as error:
        raise CheckpointError(
            f"the parts of '{name}' do not fit: {error}",
            place=slices[0].entry.place,
            remedy="merge whole models",
        ) from error
    names = tuple(dict.fromkeys(source.model.name for source in sources))
    return GatheredModel(sources[0].model, names, name, joined)
