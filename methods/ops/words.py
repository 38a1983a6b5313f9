"""The words in which kernels say what they compute, and the records that they are made of.

`Ops` has two implementations: `methods.ops.compiled_ops` works on plain memory by machine code and
defines the results on the CPU; `methods.ops.torch_ops` works on tensors, for devices, for kernels
of other packages and where there is no compiler. An *array* is what the one or the other works on:
`engine.memory.elements.Elements`, or a tensor.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, Protocol

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import GrainView
from mergeloom.methods.ops.maths import Maths

Array = Any
Numbers = Any
"""A float64 or float32 array of numpy in main memory, or a tensor on a device."""
Count = Any
"""A whole number, or a 0-d tensor that holds one."""


@dataclass(frozen=True, slots=True)
class Factors:
    """What the elements of a vector are multiplied with: float32 ``numbers``.

    There is one for each row of a grain or, if ``by_column``, one for each of as many columns as
    there are numbers; the grain's first element is in column ``first_column``.
    """

    numbers: Numbers
    by_column: bool = False
    first_column: int = 0


@dataclass(frozen=True, slots=True)
class Vector:
    """An array, or the difference of two, times factors. It is computed where it is used."""

    array: Array
    minus: Array | None = None
    factors: Factors | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """A magnitude: ``before`` for the first ``end`` elements of a grain, ``after`` for the rest."""

    before: float
    after: float
    end: int


@dataclass(frozen=True, slots=True)
class RandomBound:
    """A random choice: those elements whose numbers (`methods.ops.draws`) lie below ``bound``.

    The numbers are those of ``key`` for a grain from element ``start`` on.
    """

    key: int
    start: int
    bound: int


@dataclass(frozen=True, slots=True)
class KeepRule:
    """What is kept of a vector on a grain: all that each condition given lets through.

    ``above``: what is larger in magnitude, or NaN. ``upto``: what is not larger, and no NaN.
    ``draw``: what is chosen at random. ``marks``: what is marked (`Ops.new_marks`).
    """

    above: Bound | None = None
    upto: Bound | None = None
    draw: RandomBound | None = None
    marks: Array | None = None


KEEP_ALL = KeepRule()


@dataclass(frozen=True, slots=True)
class Lookup:
    """Numbers that are codes themselves: ``values`` (256, float32) has what each stands for.

    That is multiplied by one of ``scales`` (float32) for ``size`` numbers at a time, and ``offset``
    is added.
    """

    values: Array
    scales: Array
    size: int
    offset: float


@dataclass(frozen=True, slots=True)
class Blocks:
    """A number for each block of ``rows`` times ``columns`` elements of matrices.

    The array ``numbers`` is whole and as it is stored, for ``grid``: matrices, rows of blocks in
    each, blocks in such a row. If ``across_first``, those of one place in all rows of blocks follow
    each other. ``height`` are the rows of one matrix, ``first`` is the number of the first row at
    hand, in all matrices. With ``groups`` (int32, one for each column) these say in which block of
    its row a column is, and NaN is the number of what is in none.
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
    """How blocks are scaled: their largest magnitude becomes ``top``, with a scale rounded to
    ``dtype``.

    Where that is F8_E8M0, the scale is the power of two that gives it ``top`` as exponent. What is
    larger than ``limit`` then is ``limit``. A block of zeros has 1 as scale, or the least power,
    one with NaN or infinity has NaN.
    """

    top: float
    limit: float
    dtype: DType


class Adjustment(enum.IntEnum):
    """What `Ops.adjust` does to an element with the number of its block."""

    SUBTRACT = 0
    MULTIPLY = 1
    DIVIDE = 2


class Ops(Protocol):
    """What kernels ask of arithmetic.

    Arithmetic is float32, or float64 where that is said. NaN and infinity in an element touch the
    results that this element takes part in, and no other. Sums are of one grain; they are added up
    by `engine.graph.kernel.GrainSums`, which `sums` makes values for.
    """

    @property
    def maths(self) -> Maths:
        """Functions of `Numbers`."""

    def sums(self, numbers: Sequence[Any]) -> Any:
        """Several numbers as one value that can be added to others: float64."""

    def counters(self, count: int) -> Numbers:
        """``count`` counters, int64, all 0."""

    def single(self, numbers: Numbers) -> Numbers:
        """The same rounded to float32."""

    def there(self, numbers: Any) -> Numbers:
        """An array of numpy, where grains lie."""

    def numbers(self, array: Array, start: int, count: int) -> Numbers:
        """Elements of an array of any type, such as lie beside inputs, from ``start`` on: float64,
        rounded to float32."""

    # --- measuring ------------------------------------------------------------------------

    def dots(self, vectors: Sequence[Vector]) -> Any:
        """The dot products of all `pairs` of vectors, in float64, as one value like `sums`."""

    def magnitudes(self, vector: Vector, kept: KeepRule) -> tuple[Any, Any]:
        """The sum of a vector's magnitudes, and of what is kept of it, in float64."""

    def squares(self, vector: Vector, kept: KeepRule) -> Any:
        """The sum of the squares of what is kept of a vector, in float64."""

    def shared(self, vectors: Sequence[Vector], epsilon: float) -> Any:
        """For each vector how many magnitudes exceed ``epsilon``, and how many of them do so in
        no other vector; as one value like `sums`. NaN exceeds it."""

    def in_order(self, vector: Vector) -> Any | None:
        """The magnitudes of a vector by their float32 bits, the smallest first: an int32 array of
        numpy. ``None`` where this arithmetic rather counts, or there are NaN."""

    def count_high(self, vector: Vector, low: int, counts: Numbers) -> Count:
        """Count magnitudes by their float32 bits above the ``low`` ones: adds to ``counts``.

        Returns how many are not zero.
        """

    def count_low(
        self,
        vector: Vector,
        highs: Sequence[int],
        low: int,
        step: int,
        counts: Sequence[Numbers],
    ) -> Numbers:
        """Count magnitudes that have one of ``highs`` as high bits by their ``low`` bits.

        Each of ``highs`` has ``counts`` of its own. Returns, for each of them a row, the counts of
        those low bits that are multiples of 2**``step``: int32.
        """

    def count_equal(self, vector: Vector, value: float) -> Count:
        """How many magnitudes are ``value``."""

    def end_of_equal(self, vector: Vector, value: float, most: int) -> int:
        """Length of the longest beginning of a vector with ``most`` magnitudes of ``value``."""

    def row_dots(self, vectors: Sequence[Vector], row: int) -> list[list[Numbers]]:
        """The dot products of each pair of vectors, row by row of ``row`` elements: float64."""

    def column_dots(self, vectors: Sequence[Vector], columns: int, first: int) -> Numbers:
        """The dot products of all `pairs` of vectors, column by column: float64 (pairs, columns).

        The grain's first element is in column ``first``.
        """

    def column_sums(self, array: Array, rows: int, columns: int) -> Numbers:
        """The sum of the first ``rows`` rows of a float32 array: float64 (columns)."""

    def divergences(self, base: Array, other: Array, row: int) -> Numbers:
        """KL(p₁‖p₀) of each row, p = softmax of the row: float32.

        Σ p₁ log(p₁/p₀) = Σ p₁τ - log Σ exp θ₁ + log Σ exp θ₀
        """

    # --- choosing -------------------------------------------------------------------------

    def new_marks(self, grain: GrainView, number: int, vectors: int) -> Array:
        """Marks for vector ``number`` of ``vectors``: in the grain's memo, if it has one."""

    def choose_by_rank(
        self, vector: Vector, row: int, key: int, start: int, steps: Any, marks: Array
    ) -> Array:
        """Mark elements that are chosen at random, by bounds that depend on ranks; returns marks.

        The numbers are those of ``key`` from element ``start`` on. ``steps`` (int32, numpy) are as
        many as elements in a row, and fall: that of rank r by falling magnitude in its row, equal
        ones by their index, is the bound of an element. What is 0 may be marked or not.
        """

    def mark(self, vector: Vector, kept: KeepRule, marks: Array) -> Array:
        """Mark what is kept of a vector and is not zero; returns the marks."""

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
        """Write ``base`` + ``scale`` times a combination of what is kept of vectors.

        The combination is Σ cᵢ vᵢ. With ``votes`` bᵢ it is taken, element by element, over those
        vectors alone that agree with the elected sign s, that of Σ bᵢ vᵢ and positive at zero: vᵢ
        agrees where bᵢ vᵢ has sign s and is not zero. If ``by_count``, s is the sign of
        Σ bᵢ sign(vᵢ) instead. With ``shares`` that is divided by the sum
        of the agreeing shares, unless it is `CANCELLED`. Without a base, the combination itself.

        Yadav et al. 2023, TIES-Merging, arXiv:2306.01708, steps 2 (elect) and 3 (disjoint merge).
        """

    def step(self, vector: Vector, limit: float, base: Array, out: Array) -> None:
        """Write ``base`` + the vector, whose elements are limited to [-``limit``, ``limit``]."""

    def disjoint(
        self,
        vectors: Sequence[Vector],
        epsilon: float,
        excess: Sequence[float],
        base: Array,
        out: Array,
    ) -> None:
        """Write ``base`` + the mean of the vectors over those larger than ``epsilon`` there.

        Where that is vector i alone, it counts 1 + ``excess[i]``.
        """

    def variance(self, vectors: Sequence[Vector], out: Array) -> None:
        """Write the sum of squared deviations of vectors from their mean, element by element."""

    def choose(self, vector: Vector, least: float, out: Array) -> None:
        """Write the first of a vector's two arrays where its magnitude is ``least`` or more, and
        the second elsewhere."""

    def copy(self, array: Array, out: Array) -> None:
        """Write an array as it is."""

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
        """Write rows of ``row`` elements: (element - zero) adjusted, times factor.

        ``out`` may be ``array``.
        """

    def quantise(
        self,
        array: Array,
        row: int,
        band: int,
        columns: int,
        scale: Scaling,
        out: Array,
        scales: Array,
    ) -> None:
        """Write elements divided by the scales of their blocks, and these scales: float32.

        A block has ``band`` rows, of ``row`` elements, and ``columns`` columns.
        """

    def look_up(self, codes: Array, table: Array, out: Array) -> None:
        """Write the entry of ``table`` (float32) that each code is the number of."""

    # --- factors --------------------------------------------------------------------------

    def part(self, array: Array, start: int, count: int) -> Array:
        """Elements ``[start, start + count)`` of a flat float32 array."""

    def leading_of_matrix(
        self, matrix: Array, shape: tuple[int, int], rank: int, up: bool, out: Array
    ) -> None:
        """Write a factor of the best approximation of a float32 matrix by one of a rank.

        That is U·S·Vᵀ with the largest singular values: Vᵀ (rank, columns) or, for ``up``, U·S
        (rows, rank). Where the matrix has a lower rank, what is left is zero. Equal calls give
        equal bytes, so that both factors go together.
        """

    def leading_of_product(
        self,
        downs: Sequence[Array],
        ups: Sequence[Array],
        coefficients: Sequence[float],
        shape: tuple[int, int],
        rank: int,
        up: bool,
        out: Array,
    ) -> None:
        """The same of Σ cᵢ·upᵢ·downᵢ, with arrays as they are stored: (rows, rᵢ) and (rᵢ, columns).

        The sum itself is never made.
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

        ``down`` (rank, columns) and ``up`` (rows, rank) are whole and of any type. Products are
        added up in float32, in order of the rank.
        """

    def mean_rows(
        self, arrays: Sequence[Array], table: Array, row: int, first: int, out: Array
    ) -> None:
        """Write rows of ``row`` elements: the mean of those of ``arrays`` that ``table`` names.

        The table (rows, arrays) is whole, of bytes, and says 1 for those; its row ``first`` is for
        the first row here. One array alone is taken bit for bit; without any the row is zero.
        Means are computed in float64.
        """

    def repeat(self, numbers: Numbers, first: int, out: Array) -> None:
        """Write float32 numbers as each row of ``out``, from row ``first`` on."""

    def transpose(self, array: Array, matrix: tuple[int, int], out: Array) -> None:
        """Write matrices of ``matrix`` rows and columns turned."""


CANCELLED = 1e-8
"""Agreeing shares that add up to no more than this are not divided by."""


def pairs(count: int) -> list[tuple[int, int]]:
    """The pairs of ``count`` vectors, in the order of their dot products."""
    return [(i, j) for i in range(count) for j in range(i + 1)]


def matrix(products: Sequence[Any], count: int) -> list[list[Any]]:
    """The symmetric matrix of the dot products of `pairs`."""
    found = dict(zip(pairs(count), products, strict=True))
    return [[found[max(i, j), min(i, j)] for j in range(count)] for i in range(count)]


def here(numbers: Numbers) -> Any:
    """The same as an array of numpy in main memory."""
    if hasattr(numbers, "cpu"):
        numbers = numbers.cpu()
    return numbers.numpy() if hasattr(numbers, "numpy") else numbers


def elements_of(array: Array) -> int:
    """How many elements an array has."""
    return int(array.numel() if hasattr(array, "numel") else array.count)
