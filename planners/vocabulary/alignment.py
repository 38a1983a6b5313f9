"""Aligns the vocabularies of several models: finds the row of each token in each model.

Reads no files or tensors. A *row map* has for each output row the row number in a model's
own table, or -1 if the model has none.

    own ids     out   row map of A   row map of B
    A: x0 y1    x0        0              1
    B: y0 x1 z2 y1        1              0
                z2       -1 ◄── lent ─── 2
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Literal

from mergeloom.engine.base.records import dataclass

MISSING = -1


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of one model: ids by token, and the number of rows of its embedding."""

    model: str
    ids: Mapping[str, int]
    rows: int

    @property
    def tokens_without_row(self) -> list[str]:
        """Tokens whose id has no row."""
        rows = self.rows
        return [token for token, number in self.ids.items() if number >= rows]


@dataclass(frozen=True, slots=True)
class RowSetting:
    """The setting for the row of one token: (position of a model, row there), or ``None`` for
    zeros. ``force`` replaces the row of every model, not only of those that lack it.
    """

    taken: tuple[int, int] | None
    force: bool = False


RowOriginKind = Literal[
    "own", "base", "only", "mean", "named", "zero", "bytes", "role", "prefix", "made"
]


@dataclass(frozen=True, slots=True)
class RowOrigin:
    """The origin of one row of a rearranged table of one model.

    ``rows`` are (position of a model, row there): one, several to average, or none.
    """

    origin: RowOriginKind
    rows: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class RowPlan:
    """The rearrangement of one table of one model.

    ``maps`` has row maps of the output's length, by position of the model from which rows are
    taken. A row in one map is copied, a row in several is their mean, a row in none is zero. The
    last ``padding`` rows are the mean of all rows before them.
    """

    maps: Mapping[int, array[int]]
    padding: int

    @cached_property
    def choices(self) -> bytes:
        """For each row one byte per map, in order: 1 if the map has the row, else 0."""
        count = len(self.maps)
        length = len(next(iter(self.maps.values())))
        content = bytearray(length * count)
        for number, row_map in enumerate(self.maps.values()):
            content[number::count] = _presence(row_map)
        return bytes(content)


@dataclass(frozen=True, eq=False)
class Alignment:
    """Maps the rows of each model to the ``rows`` rows of the output.

    ``own`` has a row map of the rows that each model has itself, ``sizes`` its number of rows. The
    last ``padding`` rows and those in ``gaps`` belong to no token. ``base`` is the position of the
    base model, ``named`` the settings for single rows.
    """

    rows: int
    padding: int
    gaps: frozenset[int]
    own: tuple[array[int], ...]
    sizes: tuple[int, ...]
    base: int | None
    named: Mapping[int, RowSetting]
    special: tuple[Mapping[int, RowOriginKind], ...] = ()
    """In a transplant, the origins of a model's rows that are its own under another token, or are
    computed for it; by model."""

    @staticmethod
    def of(
        models: Sequence[Vocabulary],
        base: int | None,
        ids: Mapping[str, int],
        rows: int,
        named: Mapping[str, RowSetting],
    ) -> Alignment:
        """Align ``models`` to the output's tokens ``ids``; ``named`` has settings for some of
        them."""
        maps: dict[tuple[int, int], array[int]] = {}
        for model in models:
            key = id(model.ids), model.rows
            maps[key] = maps[key] if key in maps else _row_map(model, ids, rows)
        taken = set(ids.values())
        filled = max(taken, default=-1) + 1
        return Alignment(
            rows,
            rows - filled,
            frozenset(range(filled)) - taken,
            tuple(maps[id(model.ids), model.rows] for model in models),
            tuple(model.rows for model in models),
            base,
            {ids[token]: item for token, item in named.items()},
        )

    def is_rearranged(self, position: int) -> bool:
        """Whether the tables of a model must be rearranged."""
        same = self.sizes[position] == self.rows and not self.padding
        forced = any(item.force for item in self.named.values())
        return forced or not same or self.own[position] != array("i", range(self.rows))

    def rows_without_source(self) -> list[int]:
        """Rows of tokens that no model has and no setting names."""
        rows: Iterable[int] = self._rows_with_tokens()
        for own in self.own:
            rows = [row for row in rows if own[row] == MISSING]
        return [row for row in rows if row not in self.named]

    def origin(self, position: int, row: int, lenders: Sequence[int]) -> RowOrigin:
        """The origin of ``row`` of a model's table; ``lenders`` are the models with such a
        table."""
        named = self.named.get(row)
        own = self.own[position][row]
        if named is not None and (named.force or own == MISSING):
            if named.taken is None:
                return RowOrigin("zero", ())
            return RowOrigin("named", (named.taken,))
        special = self.special[position].get(row) if self.special else None
        if special is not None:
            return RowOrigin(special, ((position, own),) if own != MISSING else ())
        if own != MISSING:
            return RowOrigin("own", ((position, own),))
        found = [(model, number) for model in lenders if (number := self.own[model][row]) >= 0]
        for item in found:
            if item[0] == self.base:
                return RowOrigin("base", (item,))
        if len(found) == 1:
            return RowOrigin("only", tuple(found))
        return RowOrigin("mean" if found else "zero", tuple(found))

    def plan(self, position: int, lenders: Sequence[int]) -> RowPlan:
        """The rearrangement of a table of one model; see `origin`."""
        key = (position, tuple(lenders))
        if key not in self._plans:
            self._plans[key] = self._plan(position, lenders)
        return self._plans[key]

    def drop_plans(self) -> None:
        """Drop cached plans, which take megabytes and can be computed again."""
        self._plans.clear()

    def count_origins(self, position: int, lenders: Sequence[int]) -> dict[str, int]:
        """Number of rows by origin, padding as ``padding``."""
        counts: dict[str, int] = {"own": self.rows - self.own[position].count(MISSING)}
        for row in self._rows_to_replace(position):
            counts["own"] -= self.own[position][row] != MISSING
            origin = self.origin(position, row, lenders).origin
            counts[origin] = counts.get(origin, 0) + 1
        for row, kind in self.special[position].items() if self.special else ():
            if self.own[position][row] != MISSING:
                counts["own"] -= 1
                counts[kind] = counts.get(kind, 0) + 1
        if self.padding:
            counts["padding"] = self.padding
        return counts

    def _plan(self, position: int, lenders: Sequence[int]) -> RowPlan:
        maps = {position: array("i", self.own[position])}

        def take(row: int, taken: tuple[tuple[int, int], ...]) -> None:
            maps[position][row] = MISSING
            for model, number in taken:
                if model not in maps:
                    maps[model] = array("i", [MISSING]) * self.rows
                maps[model][row] = number

        rows = self._rows_to_replace(position)
        if self.base in lenders and self.base is not None:  # the usual case, handled fast
            base, rest = self.own[self.base], []
            lent = array("i", [MISSING]) * self.rows
            for row in rows:
                if base[row] == MISSING or row in self.named:
                    rest.append(row)
                else:
                    lent[row] = base[row]
            if len(rest) < len(rows):
                maps[self.base] = lent
            rows = rest
        for row in rows:
            take(row, self.origin(position, row, lenders).rows)
        return RowPlan(maps, self.padding)

    def _rows_to_replace(self, position: int) -> list[int]:
        """Rows with a token that are not the model's own."""
        own = self.own[position]
        forced = {row for row, item in self.named.items() if item.force}
        lacking = [row for row in self._rows_with_tokens() if own[row] == MISSING]
        return sorted({*lacking, *forced})

    def _rows_with_tokens(self) -> Iterator[int]:
        filled = range(self.rows - self.padding)
        return (row for row in filled if row not in self.gaps) if self.gaps else iter(filled)

    @cached_property
    def _plans(self) -> dict[tuple[int, tuple[int, ...]], RowPlan]:
        return {}


def _row_map(model: Vocabulary, ids: Mapping[str, int], rows: int) -> array[int]:
    result = array("i", [MISSING]) * rows
    own, size = model.ids, model.rows
    for token, number in ids.items():
        found = own.get(token, size)
        if found < size:
            result[number] = found
    return result


def _presence(row_map: array[int]) -> bytes:
    """1 for each row that is present, else 0, by the sign bit."""
    highest = row_map.itemsize - 1 if sys.byteorder == "little" else 0
    return row_map.tobytes()[highest :: row_map.itemsize].translate(_IS_PRESENT)


_IS_PRESENT = bytes(byte < 0x80 for byte in range(256))


def united_ids(first: Mapping[str, int], others: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The ids of all tokens: those of ``first`` keep theirs, the others follow in their order."""
    result = dict(first)
    following = max(first.values(), default=-1) + 1
    for ids in others:
        for token in sorted((token for token in ids if token not in result), key=ids.__getitem__):
            result[token] = following
            following += 1
    return result


def round_up(rows: int, multiple: int | None) -> int:
    """``rows`` rounded up to a multiple; unchanged if ``multiple`` is ``None``."""
    return rows if not multiple else -(-rows // multiple) * multiple
