"""A model whose tables of tokens have the output's rows; all else of it is as it was.

own rows of the model     ─► Load, missing rows are holes ─┐
rows that others lend it  ─► Load, all but those are holes ─► FillRows ─► the model's table
which row is whose        ─► table beside them            ─┘
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
from mergeloom.planners.models.model import Model, Shape, Stored
from mergeloom.planners.models.rows import row_axis
from mergeloom.planners.models.token_weights import Head, TokenWeights
from mergeloom.planners.vocabulary.alignment import MISSING, Alignment, RowPlan

if TYPE_CHECKING:
    from mergeloom.planners.transplant.graft import Graft

_TABLE = re.compile(r"embed_tokens\w*\.weight$")
"""Token tables other than the embedding, with their own number of rows."""

_BIAS = re.compile(r"(head|decoder|output|predictions|logits)\w*\.?bias$")


def table_rows(model: Model, tensor: str) -> int | None:
    """How many rows ``tensor`` has if it has one for each token, else ``None``.

    Embedding and head have, and whatever outside the layers is as long as they: biases of the head
    (which may be of shape (1, rows)), adaptive scales, embeddings for other layers.
    """
    tokens = model.tokens
    main = tokens.embedding or tokens.head
    shape = model.shape(tensor)
    if main is None or not shape:
        return None
    if tensor in {main, tokens.head, *tokens.twins}:
        return shape[0]
    if tensor not in model.architecture.around:
        return None
    axis = row_axis(shape)
    rows, *width = model.shape(main)
    if shape[axis] == rows and ([rows] != width or _BIAS.search(tensor)):
        return rows
    return shape[axis] if len(shape) == 2 and _TABLE.search(tensor) else None


@dataclass(frozen=True, eq=False)
class Tables:
    """What the remapped models of one merge share: ``models`` are all of them, as they were.

    ``head`` is the output's head where it has one of its own: tied models then have it too.
    ``graft`` makes rows that models lack, where that is asked for.
    """

    alignment: Alignment
    models: tuple[Model, ...]
    head: str | None
    graft: Graft | None = None

    def twin(self, position: int, tensor: str, of: Model) -> str | None:
        """What another model has in place of ``tensor`` of model ``of``, if it can lend rows."""
        model = self.models[position]
        theirs, own = model.tokens, of.tokens
        name: str | None = tensor
        if tensor in {own.head, self.head} and tensor != own.embedding:
            name = theirs.head if theirs.kind is Head.OWN else theirs.embedding
        elif tensor == own.embedding or tensor in own.twins:
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
    """Model number ``position`` of a merge, its tables of tokens rearranged."""

    tables: Tables
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
            return TokenWeights(own.embedding, self.tables.head, Head.OWN, own.twins)
        return own

    def stored(self, tensor: str) -> Stored | None:
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
        return self.model.dtype(self._source(tensor))

    def node(
        self, builder: GraphBuilder, tensor: str, rows: Sequence[int] | None = None
    ) -> Load | Merge:
        if not self._is_table(tensor):
            return self.model.node(builder, tensor, rows)
        assert rows is None, "rows are arranged already"
        lenders = {self.position: self._source(tensor)}
        for position in range(len(self.tables.models)):
            twin = self.tables.twin(position, tensor, self.model)
            if twin is not None and position != self.position:
                lenders[position] = twin
        if self.tables.graft is not None and len(self.shape(tensor)) == 2:
            return self._grafted(builder, tensor, lenders, self.tables.graft)
        plan = self.tables.alignment.plan(self.position, sorted(lenders))
        inputs = [
            _rows(self.tables.models[position], builder, lenders[position], row_map)
            for position, row_map in plan.maps.items()
        ]
        if len(inputs) == 1 and not plan.padding:
            return inputs[0]
        return builder.merge(
            inputs, FillRows(plan.padding), tensor, side=(_choices(builder, plan),)
        )

    def _grafted(
        self, builder: GraphBuilder, tensor: str, names: Mapping[int, str], graft: Graft
    ) -> Load | Merge:
        """A table whose missing rows are made; ``names`` are those of all models' tables."""
        alignment, source = self.tables.alignment, names[self.position]
        plan = alignment.plan(self.position, [self.position])
        own = array("i", plan.maps[self.position])
        for row, number in graft.borrowed(self.position, self.model, source):
            own[row] = number
        maps = {**plan.maps, self.position: own}
        inputs = [
            _rows(self.tables.models[position], builder, names[position], row_map)
            for position, row_map in maps.items()
        ]
        known = inputs[0]
        if len(inputs) > 1:
            side = _choices(builder, RowPlan(maps, 0))
            known = builder.merge(inputs, FillRows(), tensor, side=(side,))
        empty = (*alignment.gaps, *range(alignment.rows - alignment.padding, alignment.rows))
        rows = alignment.own[self.position]
        return graft.node(builder, tensor, known, rows, self.model, source, self.position, empty)

    def _source(self, tensor: str) -> str:
        """The name under which the rows are stored: a tied model's head is its embedding."""
        return tensor if tensor in self.model else self.model.tokens.embedding or tensor

    def _is_table(self, tensor: str) -> bool:
        return table_rows(self.model, self._source(tensor)) is not None


def _rows(model: Model, builder: GraphBuilder, tensor: str, row_map: array[int]) -> Load | Merge:
    own = table_rows(model, tensor) or 0
    if max(row_map, default=0) >= own:  # the table is smaller than the embedding
        row_map = array("i", (row if row < own else MISSING for row in row_map))
    if len(row_map) == own and row_map == array("i", range(own)):
        return model.node(builder, tensor)
    return model.node(builder, tensor, row_map)


def _choices(builder: GraphBuilder, plan: RowPlan) -> Load:
    """For each row, which inputs it is the mean of: (rows, inputs), uint8."""
    source = MemorySource(plan.choices, "which row is whose")
    shape = (len(plan.choices) // len(plan.maps), len(plan.maps))
    return builder.load(source, 0, BY_CODE["U8"], shape, source.name)
