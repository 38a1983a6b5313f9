"""`Ops`, the interface between kernels and arithmetic, and the records it uses.

`Ops` has two main implementations: `methods.ops.compiled_ops` is machine code on plain memory and
defines the results on the CPU; `methods.ops.torch_ops` works on tensors, for devices, for kernels
of other packages and where there is no compiler. An *array* is `engine.memory.elements.Elements`
for the first and a tensor for the second.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, Protocol

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.records import dataclass, record
from mergeloom.engine.graph.kernel import GrainView
from mergeloom.methods.ops.maths import Maths

Array = Any
Numbers = Any
"""A float64 or float32 numpy array in main memory, or a tensor on a device."""
Count = Any
"""An integer, or a 0-d integer tensor."""


@dataclass(frozen=True, slots=True)
class Factors:
    """Float32 ``numbers`` that multiply the elements of a vector.

    There is one for each row of a grain or, with ``by_column``, one for each column; the first
    element of the grain is in column ``first_column``.
    """

    numbers: Numbers
    by_column: bool = False
    first_column: int = 0


@record(frozen=True, slots=True)
class Vector:
    """An array, or the difference of two, times factors; evaluated lazily."""

    array: Array
    minus: Array | None = None
    factors: Factors | None = None


@record(frozen=True, slots=True)
class Bound:
    """A magnitude bound: ``until_end`` for the first ``end`` elements of a grain, ``from_end`` for
    the others."""

    until_end: float
    from_end: float
    end: int


@record(frozen=True, slots=True)
class RankRange:
    """The magnitudes of a grain up to rank ``last``, without the ``skipped`` largest.

    Rank 1 is the largest magnitude; NaN ranks above infinity, and of equal magnitudes the first
    in index order is the largest. Where the magnitude of rank ``last`` or ``skipped`` is NaN, all
    elements of lower rank are in the range too.
    """

    last: int
    skipped: int = 0


@record(frozen=True, slots=True)
class RandomBound:
    """A random choice: the elements whose random number (`methods.ops.draws`) is below ``bound``.

    The numbers are drawn with ``key``; the grain begins at element ``start``.
    """

    key: int
    start: int
    bound: int


@record(frozen=True, slots=True)
class KeepRule:
    """Which elements of a vector on a grain are kept: those that meet every given condition.

    ``above``: larger in magnitude, or NaN. ``upto``: not larger, and not NaN. ``ranks``: in a range
    of ranks, only for `Ops.combine` on a grain for which `Ops.ranks` is true, and without the
    first two. ``draw``: chosen at random. ``marks``: marked (`Ops.new_marks`).
    """

    above: Bound | None = None
    upto: Bound | None = None
    draw: RandomBound | None = None
    marks: Array | None = None
    ranks: RankRange | None = None


KEEP_ALL = KeepRule()


@dataclass(frozen=True, slots=True)
class Lookup:
    """How to decode block numbers that are quantised themselves, as indices into ``values``.

    ``values`` is float32 (256). Each run of ``size`` values is multiplied by one of ``scales``
    (float32), then ``offset`` is added.
    """

    values: Array
    scales: Array
    size: int
    offset: float


@dataclass(frozen=True, slots=True)
class Blocks:
    """One number for each block of (``rows``, ``columns``) elements of matrices.

    The array ``numbers`` is whole and in its stored dtype, for a ``grid`` of (matrices, block rows,
    block columns). If ``across_first``, numbers are stored column by column. ``height`` is the
    number of rows of a matrix, ``first`` the index of the first row of this grain, counted over
    all matrices. ``groups`` (int32, one per column) is the block column of each column; columns in
    no block have the number NaN.
    """

    numbers: Array
    grid: tuple[int, int, int]
    rows: int
    columns: int
    height: int
    first: int
    across_first: bool = False
    groups: Array | None = None
    lookup: Lookup | None = None


@dataclass(frozen=True, slots=True)
class Scaling:
    """How blocks are scaled: the largest magnitude becomes ``top``, with a scale rounded to
    ``dtype``.

    For F8_E8M0, the scale is the power of two that gives the largest magnitude the exponent
    ``top``. Scaled values are clipped to ``limit``. The scale of a block of zeros is 1 (the least
    power of two for F8_E8M0), that of a block with NaN or infinity is NaN.
    """

    top: float
    limit: float
    dtype: DType


class Adjustment(enum.IntEnum):
    """The operation of `Ops.adjust` on an element and the number of its block."""

    SUBTRACT = 0
    MULTIPLY = 1
    DIVIDE = 2


class Ops(Protocol):
    """The operations of arithmetic that kernels use.

    Arithmetic is float32 unless float64 is stated. NaN and infinity only affect results that the
    element takes part in. Sums are over one grain; `engine.graph.sums.GrainSums` adds up the values
    returned by `sums`.
    """

    @property
    def maths(self) -> Maths:
        """Functions of `Numbers`."""

    def sums(self, numbers: Sequence[Any]) -> Any:
        """Several numbers as one float64 value that supports addition."""

    def counters(self, count: int) -> Numbers:
        """``count`` int64 counters, all 0."""

    def to_float32(self, numbers: Numbers) -> Numbers:
        """The numbers rounded to float32."""

    def from_numpy(self, numbers: Any) -> Numbers:
        """Copy a numpy array to the memory where grains are, such as that of a device."""

    def numbers(self, array: Array, start: int, count: int) -> Numbers:
        """``count`` elements of an array of any dtype, such as a side input, from ``start`` on:
        float64, rounded to float32."""

    # --- measuring ------------------------------------------------------------------------

    def dots(self, vectors: Sequence[Vector]) -> Any:
        """The float64 dot products of all `pairs` of vectors, as one value like `sums`."""

    def magnitudes(self, vector: Vector, kept: KeepRule) -> tuple[Any, Any]:
        """The float64 sums of the magnitudes of a vector, and of its kept elements."""

    def squares(self, vector: Vector, kept: KeepRule) -> Any:
        """The float64 sum of the squares of the kept elements of a vector."""

    def count_changed(self, vectors: Sequence[Vector], epsilon: float) -> Any:
        """For each vector, the number of magnitudes that exceed ``epsilon``, and of those that do
        so in no other vector; as one value like `sums`. NaN exceeds ``epsilon``."""

    def ranks(self, count: int) -> bool:
        """Whether keep rules may have ``ranks`` on a grain of ``count`` elements."""

    def find_ranks(
        self, vector: Vector, ranks: Sequence[int], low: int
    ) -> tuple[int, list[tuple[int, int, int, int, int]]] | None:
        """The number of nonzero magnitudes of a vector, and five numbers for each of ``ranks`` (1
        is the largest magnitude).

        These are: the float32 bits of the magnitude of this rank; the number of larger magnitudes;
        of equal ones; of those that are larger in the bits above the lowest ``low``; and the number
        of elements before the first equal one that is not needed to reach the rank, in index order.
        The vector has at most `methods.ops.loops.sizes.MAX_RANKED` elements. ``None`` if this
        arithmetic only counts (`count_high`), or if the vector contains NaN.
        """

    def count_high(
        self, vectors: Sequence[Vector], low: int, counts: Sequence[Numbers]
    ) -> Sequence[Count]:
        """Count the magnitudes of each vector by their float32 bits above the lowest ``low``; adds
        to its ``counts``.

        Returns the number of nonzero magnitudes of each.
        """

    def count_low(
        self,
        vectors: Sequence[Vector],
        highs: Sequence[Sequence[int]],
        low: int,
        step: int,
        counts: Sequence[Sequence[Numbers]],
    ) -> Sequence[Sequence[Numbers]]:
        """Count the magnitudes of each vector that have one of its ``highs`` as high bits by their
        ``low`` bits.

        Each of ``highs`` has its own ``counts``, and gets an int32 array: the counts of low bits
        that are multiples of 2**``step``.
        """

    def count_equal(self, vector: Vector, value: float) -> Count:
        """The number of magnitudes equal to ``value``."""

    def end_of_equal(self, vector: Vector, value: float, max_equal: int) -> int:
        """Length of the longest prefix of a vector with ``max_equal`` magnitudes equal to
        ``value``."""

    def row_dots(self, vectors: Sequence[Vector], row: int) -> list[list[Numbers]]:
        """The float64 dot products of each pair of vectors, for each row of ``row`` elements."""

    def column_dots(self, vectors: Sequence[Vector], columns: int, first: int) -> Numbers:
        """The dot products of all `pairs` of vectors for each column: float64 (pairs, columns).

        The first element of the grain is in column ``first``.
        """

    def column_sums(self, array: Array, rows: int, columns: int) -> Numbers:
        """The sum of the first ``rows`` rows of a float32 array: float64 (columns)."""

    def divergences(self, base: Array, other: Array, row: int) -> Numbers:
        """KL(p₁‖p₀) of each row of ``row`` elements, p = softmax of the row: float32.

        Σ p₁ log(p₁/p₀) = Σ p₁τ - log Σ exp θ₁ + log Σ exp θ₀
        """

    # --- choosing -------------------------------------------------------------------------

    def new_marks(self, grain: GrainView, number: int, vectors: int) -> Array:
        """Marks for vector ``number`` of ``vectors``, in the grain's memo if it has one."""

    def choose_by_rank(
        self, vector: Vector, row: int, key: int, start: int, steps: Any, marks: Array
    ) -> Array:
        """Mark elements chosen at random, by bounds that depend on rank; returns the marks.

        Numbers are drawn with ``key`` from element ``start`` on. ``steps`` (int32 numpy array, one
        per element of a row, descending) has the bound for each rank in the row, by descending
        magnitude, ties in index order. Zeros may be marked or not.
        """

    def mark(self, vector: Vector, kept: KeepRule, marks: Array) -> Array:
        """Mark the kept nonzero elements of a vector; returns the marks."""

    # --- writing --------------------------------------------------------------------------

    def combine(
        self,
        vectors: Sequence[Vector],
        coefficients: Sequence[float],
        out: Array,
        *,
        kept: Sequence[KeepRule] | None = None,
        votes: Sequence[float] | None = None,
        shares: Sequence[float] | None = None,
        base: Array | None = None,
        scale: float = 1.0,
        by_count: bool = False,
    ) -> None:
        """Write ``base`` + ``scale`` · a combination of the kept elements of vectors.

        The combination is Σ cᵢ vᵢ. With ``votes`` bᵢ the sum is, element by element, over vectors
        that agree with the elected sign s = sign(Σ bᵢ vᵢ), + at zero: vᵢ agrees where bᵢ vᵢ has
        sign s and is not zero. If ``by_count``, s is the sign of Σ bᵢ sign(vᵢ) instead. With
        ``shares``, the sum is divided by the sum of the agreeing shares, unless that is at most
        `CANCELLED`. Without ``base``, the combination itself is written, not scaled.

        Yadav et al. 2023, TIES-Merging, arXiv:2306.01708, steps 2 (elect) and 3 (disjoint merge).
        """

    def step(self, vector: Vector, limit: float, base: Array, out: Array) -> None:
        """Write ``base`` + the vector clipped to [-``limit``, ``limit``]."""

    def disjoint(
        self,
        vectors: Sequence[Vector],
        epsilon: float,
        excess: Sequence[float],
        base: Array,
        out: Array,
    ) -> None:
        """Write ``base`` + the mean of the elements whose magnitude exceeds ``epsilon``.

        Where only vector i does, it is scaled by 1 + ``excess[i]``.
        """

    def variance(self, vectors: Sequence[Vector], out: Array) -> None:
        """Write the sum of squared deviations of vectors from their mean, element by element.

        They are computed relative to the first vector: if all are equal, the sum is exactly 0.
        """

    def choose(self, vector: Vector, threshold: float, out: Array) -> None:
        """Write the first of the vector's two arrays where the magnitude of the vector is at least
        ``threshold``, and the second elsewhere."""

    def copy(self, array: Array, out: Array) -> None:
        """Write an array unchanged."""

    def adjust(
        self,
        array: Array,
        blocks: Blocks,
        how: Adjustment,
        row: int,
        out: Array,
        *,
        zero: float = 0.0,
        factor: float = 1.0,
    ) -> None:
        """Write rows of ``row`` elements: (element - zero) adjusted by the block number, · factor.

        ``out`` may be ``array``.
        """

    def quantise(
        self,
        array: Array,
        row: int,
        block_rows: int,
        columns: int,
        scale: Scaling,
        out: Array,
        scales: Array,
    ) -> None:
        """Write elements divided by the scales of their blocks, and these scales: float32.

        A row of the matrix has ``row`` elements, a block ``block_rows`` rows and ``columns``
        columns.
        """

    def look_up(self, indices: Array, table: Array, out: Array) -> None:
        """Write the entry of ``table`` (float32) at each index."""

    # --- factors --------------------------------------------------------------------------

    def part(self, array: Array, start: int, count: int) -> Array:
        """Elements ``[start, start + count)`` of an array, in order of rows; each is of whole
        bytes."""

    def leading_of_matrix(
        self, matrix: Array, shape: tuple[int, int], rank: int, down: Array, up: Array
    ) -> None:
        """Write the two factors of the best approximation of rank ``rank`` of a float32 matrix.

        Of U·S·Vᵀ with the largest singular values, ``down`` is √S·Vᵀ (rank, columns), ``up`` is
        U·√S (rows, rank). If the matrix has a lower rank, the rest is zero.
        """

    def leading_of_product(
        self,
        downs: Sequence[Array],
        ups: Sequence[Array],
        coefficients: Sequence[float],
        shape: tuple[int, int],
        rank: int,
        down: Array,
        up: Array,
    ) -> None:
        """The same for Σ cᵢ·upsᵢ·downsᵢ, with stored arrays (rows, rᵢ) and (rᵢ, columns).

        The sum itself is never computed.
        """

    def add_product(
        self,
        weight: Array,
        down: Array,
        up: Array,
        rank: int,
        first: int,
        scale: float,
        out: Array,
    ) -> None:
        """Write ``weight`` + ``scale``·``up``·``down``, from element ``first`` of the product on.

        ``down`` (rank, columns) and ``up`` (rows, rank) are whole and of any dtype. Products are
        summed in float32, in order of the rank.
        """

    def mean_rows(
        self, arrays: Sequence[Array], table: Array, row: int, first: int, out: Array
    ) -> None:
        """Write rows of ``row`` elements: the mean over the ``arrays`` selected by ``table``.

        The table (rows, arrays) is whole, with bytes 1 for selected arrays; its row ``first``
        belongs to the first row of this grain. A single array is copied bit for bit; without any,
        the row is zero. Means are computed in float64.
        """

    def repeat(self, numbers: Numbers, first: int, out: Array) -> None:
        """Write float32 numbers to every row of ``out`` from row ``first`` on."""

    def transpose(self, array: Array, matrix: tuple[int, int], out: Array) -> None:
        """Write the transposes of matrices of shape ``matrix``."""


CANCELLED = 1e-8
"""Sums of agreeing shares of at most this magnitude are not divided by."""


def pairs(count: int) -> list[tuple[int, int]]:
    """The pairs of ``count`` vectors, in the order in which dot products are returned."""
    return [(i, j) for i in range(count) for j in range(i + 1)]


def matrix(products: Sequence[Any], count: int) -> list[list[Any]]:
    """The symmetric matrix of dot products in the order of `pairs`."""
    found = dict(zip(pairs(count), products, strict=True))
    return [[found[max(i, j), min(i, j)] for j in range(count)] for i in range(count)]


def to_numpy(numbers: Numbers) -> Any:
    """The numbers as a numpy array in main memory."""
    if hasattr(numbers, "cpu"):
        numbers = numbers.cpu()
    return numbers.numpy() if hasattr(numbers, "numpy") else numbers


def elements_of(array: Array) -> int:
    """Number of elements of an array."""
    return int(array.numel() if hasattr(array, "numel") else array.count)
