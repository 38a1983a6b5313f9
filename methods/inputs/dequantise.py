"""Dequantisation: values from quantised values and scales."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import GrainView, Kernel, Use
from mergeloom.methods.ops.interface import Adjustment, Array, Blocks, Lookup

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Nested:
    """Scales that are quantised themselves (double quantisation), as indices into a table.

    Each run of ``size`` scales has a scale of its own, and ``offset`` is added to the product. The
    side inputs are the table of 256 values and those scales.
    """

    size: int
    offset: float


@dataclass(frozen=True, slots=True)
class Scale:
    """One scale for each block of ``rows`` times ``columns`` elements of a matrix.

    0 means the whole dimension. The last block of a dimension may be shorter. Each matrix of a
    stack has its own scales; with ``single`` there is only one for everything. If ``inverse``,
    values are divided by the scale. If ``across_first``, scales are stored column by column: first
    those of the first block of each row of blocks, then those of the second.
    """

    rows: int = 0
    columns: int = 0
    inverse: bool = False
    single: bool = False
    across_first: bool = False
    nested: Nested | None = None

    def grid(self, shape: Shape) -> tuple[int, int, int]:
        """Number of matrices, and of block rows and block columns in each, for ``shape``."""
        if self.single:
            return (1, 1, 1)
        *stack, rows, columns = (1, 1, *shape)
        return (
            math.prod(stack),
            -(-rows // self.rows) if self.rows else 1,
            -(-columns // self.columns) if self.columns else 1,
        )

    def side_sizes(self, shape: Shape) -> Iterator[int]:
        """Number of elements of each side input this scale needs, in order."""
        scales = math.prod(self.grid(shape))
        yield scales
        if self.nested is not None:
            yield 256
            yield -(-scales // self.nested.size)


@dataclass(frozen=True)
class Dequantise(Kernel):
    """(q - zero - point) · scale · scale · … · factor, for each quantised value q.

    With a ``table`` of that many entries, q is first replaced by the entry at index q.

    Side inputs, in this order: the table (float32) if ``table``, the tensors of each of ``scales``
    (`Scale.side_sizes`), one zero point for each block if ``points``, and the block index of each
    column (int32) if ``groups``. ``shape`` is the shape of the result, if it
    differs from that of the quantised values.
    """

    scales: tuple[Scale, ...]
    zero: float = 0.0
    table: int = 0
    points: Scale | None = None
    groups: bool = False
    factor: float = 1.0
    shape: Shape | None = None
    access = Access.ROWWISE
    accepts_integers = True
    uses_float64 = False
    version = 2

    def output_shape(self, inputs: Sequence[Shape], side: Sequence[Shape]) -> Shape:
        (shape,) = inputs
        if not (self.scales or self.points):
            raise ValueError("there is no scale")
        wanted = [self.table] if self.table else []
        for scale in (*self.scales, *([self.points] if self.points else [])):
            wanted += scale.side_sizes(shape)
        wanted += [shape[-1]] if self.groups else []
        found = [math.prod(each) for each in side]
        if wanted != found:
            raise ValueError(
                f"quantised values {_text(shape)} need side inputs of "
                f"{', '.join(map(str, wanted))} numbers, not {', '.join(map(_text, side))}"
            )
        if self.shape is not None and math.prod(self.shape) != math.prod(shape):
            raise ValueError(f"quantised values {_text(shape)} cannot become {_text(self.shape)}")
        return shape if self.shape is None else self.shape

    @property
    def uses(self) -> tuple[Use, ...]:
        adjusted = Use("adjust", len(self.scales) + (self.points is not None))
        return (adjusted, Use("look_up")) if self.table else (adjusted,)

    def workspace_bytes(self, grains: Grains) -> int:
        """Scales for the elements of a grain and their indices (torch), or for one row."""
        blocks = [scale.columns for scale in (*self.scales, self.points) if scale and scale.columns]
        shortest = 1 if self.groups else min(blocks, default=grains.size)
        rows = grains.size // min(grains.row, grains.size)
        return 16 * (-(-grains.size // shortest) + rows)

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], prefix: tuple[int, ...]
    ) -> None:
        ops, row = grain.ops, grain.shape[1]
        side = iter(grain.side)
        current, zero = grain.inputs[0], self.zero
        if self.table:
            ops.look_up(current, next(side), out)
            current = out
        parts = [(scale, self._parts(scale, side)) for scale in self.scales]
        points = next(side) if self.points is not None else None
        groups = next(side) if self.groups else None
        if self.points is not None:
            lowered = _blocks(self.points, (points,), groups, grain)
            ops.adjust(current, lowered, Adjustment.SUBTRACT, row, out, zero=zero)
            current, zero = out, 0.0
        for number, (scale, own) in enumerate(parts):
            how = Adjustment.DIVIDE if scale.inverse else Adjustment.MULTIPLY
            factor = self.factor if number == len(parts) - 1 else 1.0
            blocks = _blocks(scale, own, None if scale.single else groups, grain)
            ops.adjust(current, blocks, how, row, out, zero=zero, factor=factor)
            current, zero = out, 0.0

    @staticmethod
    def _parts(scale: Scale, side: Iterator[Array]) -> tuple[Array, ...]:
        return tuple(next(side) for _ in range(1 if scale.nested is None else 3))


def _blocks(scale: Scale, own: Sequence[Array], groups: Array | None, grain: GrainView) -> Blocks:
    shape = grain.whole_shape
    row = shape[-1]
    grid = scale.grid(shape)
    height = math.prod(shape[:-1]) // grid[0]
    lookup = None
    if scale.nested is not None:
        lookup = Lookup(own[1], own[2], scale.nested.size, scale.nested.offset)
    return Blocks(
        *(own[0], grid, scale.rows or height, scale.columns or row, height, grain.start // row),
        across_first=scale.across_first,
        groups=groups,
        lookup=lookup,
    )


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "1"
