"""A model whose token tables have the rows of the output; everything else is unchanged.

the model's own rows          ─► Load, with holes for missing rows ─┐
rows taken from other models  ─► Load, with holes for all others   ─► FillRows ─► the model's table
the source of each row        ─► side input                        ─┘
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.dtypes import BY_CODE, DType
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import GraphBuilder, Load, Merge
from mergeloom.engine.storage.memory_source import MemorySource
from mergeloom.methods.inputs.fill_rows import FillRows
from mergeloom.planners.models.architecture import Architecture
from mergeloom.planners.models.model import Model, Shape, TensorLocation
from mergeloom.planners.models.rows import row_axis
from mergeloom.planners.models.token_weights import Head, TokenWeights
from mergeloom.planners.vocabulary.alignment import MISSING, Alignment, RowPlan

if TYPE_CHECKING:
    from mergeloom.planners.transplant.plan import TransplantPlan

_OTHER_TABLE = re.compile(r"embed_tokens\w*\.weight$")
"""Token tables other than the embedding, with their own number of rows."""

_HEAD_BIAS = re.compile(r"(head|decoder|output|predictions|logits)\w*\.?bias$")


def table_rows(model: Model, tensor: str) -> int | None:
    """The number of rows of ``tensor`` if it has one for each token, else ``None``.

    Such tensors are the embedding, the head, and other weights outside the layers of the same
    length: biases of the head (also of shape (1, rows)), adaptive scales, embeddings for layers.
    """
    tokens = model.tokens
    main = tokens.embedding or tokens.head
    shape = model.shape(tensor)
    if main is None or not shape:
        return None
    if tensor in {main, tokens.head, *tokens.equal_weights}:
        return shape[0]
    if tensor not in model.architecture.outside_layers:
        return None
    axis = row_axis(shape)
    rows, *width = model.shape(main)
    if shape[axis] == rows and ([rows] != width or _HEAD_BIAS.search(tensor)):
        return rows
    return shape[axis] if len(shape) == 2 and _OTHER_TABLE.search(tensor) else None


@dataclass(frozen=True, eq=False)
class SharedTables:
    """The data that all remapped models of one merge share.

    ``models`` are the original models. ``head`` is the output's head if that is a weight of its
    own, which tied models then get too. ``transplant`` computes rows that models lack, if settings
    ask for it.
    """

    alignment: Alignment
    models: tuple[Model, ...]
    head: str | None
    transplant: TransplantPlan | None = None

    def corresponding_table(self, position: int, tensor: str, of: Model) -> str | None:
        """The table of another model that corresponds to ``tensor`` of model ``of``; ``None`` if
        rows of it do not fit."""
        model = self.models[position]
        theirs, own = model.tokens, of.tokens
        name: str | None = tensor
        if tensor in {own.head, self.head} and tensor != own.embedding:
            name = theirs.head if theirs.kind is Head.OWN else theirs.embedding
        elif tensor == own.embedding or tensor in own.equal_weights:
            name = theirs.embedding or theirs.head
        if name is None or name not in model or table_rows(model, name) is None:
            return None
        shape, wanted = list(model.shape(name)), list(_shape(of, tensor))
        shape[row_axis(model.shape(name))] = wanted[row_axis(_shape(of, tensor))] = 0
        return name if shape == wanted else None


def _shape(model: Model, tensor: str) -> Shape:
    return model.shape(tensor if tensor in model else model.tokens.embedding or tensor)


@dataclass(frozen=True, eq=False)
class RemappedModel:
    """Model number ``position`` of a merge, with rearranged token tables."""

    tables: SharedTables
    position: int

    @property
    def model(self) -> Model:
        """The original model."""
        return self.tables.models[self.position]

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def config(self) -> Mapping[str, Any]:
        return self.model.config

    @property
    def architecture(self) -> Architecture:
        return self.model.architecture

    @cached_property
    def tokens(self) -> TokenWeights:
        own = self.model.tokens
        if own.kind is Head.TIED and self.tables.head is not None:
            return TokenWeights(own.embedding, self.tables.head, Head.OWN, own.equal_weights)
        return own

    def stored(self, tensor: str) -> TensorLocation | None:
        return None if self._is_table(tensor) else self.model.stored(tensor)

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.model or tensor == self.tokens.head

    def __iter__(self) -> Iterator[str]:
        return iter(self.model)

    def shape(self, tensor: str) -> Shape:
        shape = _shape(self.model, tensor)
        if not self._is_table(tensor):
            return shape
        axis = row_axis(shape)
        return (*shape[:axis], self.tables.alignment.rows, *shape[axis + 1 :])

    def dtype(self, tensor: str) -> DType:
        return self.model.dtype(self._stored_table(tensor))

    def node(
        self, builder: GraphBuilder, tensor: str, rows: Sequence[int] | None = None
    ) -> Load | Merge:
        if not self._is_table(tensor):
            return self.model.node(builder, tensor, rows)
        assert rows is None, "rows are arranged already"
        names = {self.position: self._stored_table(tensor)}
        for position in range(len(self.tables.models)):
            corresponding_table = self.tables.corresponding_table(position, tensor, self.model)
            if corresponding_table is not None and position != self.position:
                names[position] = corresponding_table
        if self.tables.transplant is not None and len(self.shape(tensor)) == 2:
            return self._transplanted(builder, tensor, names, self.tables.transplant)
        plan = self.tables.alignment.plan(self.position, sorted(names))
        inputs = [
            _rows(self.tables.models[position], builder, names[position], row_map)
            for position, row_map in plan.maps.items()
        ]
        if len(inputs) == 1 and not plan.padding:
            return inputs[0]
        return builder.merge(
            inputs, FillRows(plan.padding), tensor, side=(_presence_table(builder, plan),)
        )

    def _transplanted(
        self,
        builder: GraphBuilder,
        tensor: str,
        names: Mapping[int, str],
        transplant: TransplantPlan,
    ) -> Load | Merge:
        """A table whose missing rows are computed; ``names`` are the tables of all models."""
        alignment, source = self.tables.alignment, names[self.position]
        plan = alignment.plan(self.position, [self.position])
        own = array("i", plan.maps[self.position])
        for row, number in transplant.replaced_rows(self.position, self.model, source):
            own[row] = number
        maps = {**plan.maps, self.position: own}
        inputs = [
            _rows(self.tables.models[position], builder, names[position], row_map)
            for position, row_map in maps.items()
        ]
        known = inputs[0]
        if len(inputs) > 1:
            side = _presence_table(builder, RowPlan(maps, 0))
            known = builder.merge(inputs, FillRows(), tensor, side=(side,))
        empty = (*alignment.gaps, *range(alignment.rows - alignment.padding, alignment.rows))
        rows = alignment.own[self.position]
        return transplant.node(
            builder, tensor, known, rows, self.model, source, self.position, empty
        )

    def _stored_table(self, tensor: str) -> str:
        """The name of the stored table; the head of a tied model is its embedding."""
        return tensor if tensor in self.model else self.model.tokens.embedding or tensor

    def _is_table(self, tensor: str) -> bool:
        return table_rows(self.model, self._stored_table(tensor)) is not None


def _rows(model: Model, builder: GraphBuilder, tensor: str, row_map: array[int]) -> Load | Merge:
    own = table_rows(model, tensor) or 0
    if max(row_map, default=0) >= own:  # the table is smaller than the embedding
        row_map = array("i", (row if row < own else MISSING for row in row_map))
    if len(row_map) == own and row_map == array("i", range(own)):
        return model.node(builder, tensor)
    return model.node(builder, tensor, row_map)


def _presence_table(builder: GraphBuilder, plan: RowPlan) -> Load:
    """The inputs that each row is the mean of, as flags: (rows, inputs), uint8."""
    source = MemorySource(plan.choices, "sources of rows")
    shape = (len(plan.choices) // len(plan.maps), len(plan.maps))
    return builder.load(source, 0, BY_CODE["U8"], shape, source.name)
