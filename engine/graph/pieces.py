"""Locations of the bytes of a tensor, as pieces that the reader assembles.

    Range     ▐██████████▌         one contiguous run of a source
    Joined    ▐███▌▐██▌▐█████▌     parts concatenated along any axis
    Rows      ▐█▌▐███▌ ·· ▐█▌      rows in another order; a missing row is a hole (zeros)
    Strided   ▐▌ ▐▌ ▐▌ ▐▌          elements at regular distances: transposed, sliced

In memory a tensor is always dense, in row-major order: this module calls that its dense bytes ``[0,
nbytes)``. So schedule, ledger and kernels do not know about pieces. Pieces can be nested: rows of
joined tensors, a slice of rows.

`mergeloom.engine.graph.stored_tensor` creates them, with a method for each arrangement.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import field
from itertools import accumulate
from typing import NamedTuple

from mergeloom.engine.base.records import dataclass, record
from mergeloom.engine.storage.source import Source

Shape = tuple[int, ...]


class Run(NamedTuple):
    """``length`` bytes of ``source`` from byte ``position`` on, for dense byte ``at``.

    Without a source it is a hole of ``length`` zero bytes. With ``item``, the run is split into
    items of ``item`` bytes, placed ``step`` bytes apart in the dense bytes.
    ``at`` is relative to the start of the requested dense bytes.
    """

    source: Source | None
    position: int
    length: int
    at: int
    item: int = 0
    step: int = 0


class Bytes(ABC):
    """The dense bytes of a tensor, and their stored locations."""

    __slots__ = ()

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Number of dense bytes."""

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """A key that is equal for equal arrangements, while their sources are alive."""

    @abstractmethod
    def describe(self, identity: Callable[[Source], str]) -> str:
        """The description for the fingerprint; ``identity`` identifies the content of a source."""

    @abstractmethod
    def ranges(self) -> Iterator[Range]:
        """The ranges of sources it refers to, possibly only in part."""

    def items(self) -> Iterator[int]:
        """Sizes in bytes of elements that are moved one by one."""
        return iter(())

    @abstractmethod
    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """The runs that make up dense bytes ``[start, stop)``, which begin and end between
        elements.
        """

    def requests(self, start: int, stop: int) -> Iterator[Run]:
        """The same, with runs that are contiguous in a source joined into one request."""
        last: Run | None = None
        for run in self.runs(start, stop):
            if last is None:
                last = run
            elif (
                run.source is last.source
                and not (run.item or last.item)
                and (run.source is None or run.position == last.position + last.length)
            ):
                last = Run(last.source, last.position, last.length + run.length, last.at)
            else:
                yield last
                last = run
        if last is not None:
            yield last

    def stored(self, start: int, stop: int) -> int:
        """Number of bytes read for dense bytes ``[start, stop)``: all except holes."""
        return stop - start

    @property
    def has_holes(self) -> bool:
        """Whether any dense byte is missing."""
        return False

    def position(self, start: int) -> int:
        """A source position for the bytes from dense byte ``start`` on.

        To align pages of memory with pages of files, dense byte ``start`` should be placed at an
        address congruent to it.
        """
        for run in self.runs(start, self.nbytes):
            if run.source is not None:
                return run.position - run.at
        return 0


@record(frozen=True, slots=True, eq=False)
class Range(Bytes):
    """Bytes ``[offset, offset + length)`` of ``source``."""

    source: Source
    offset: int
    length: int

    @property
    def nbytes(self) -> int:
        return self.length

    @property
    def key(self) -> Hashable:
        return id(self.source), self.offset, self.length

    def describe(self, identity: Callable[[Source], str]) -> str:
        return f"{identity(self.source)}|{self.offset}"

    def ranges(self) -> Iterator[Range]:
        yield self

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        if start < stop:
            yield Run(self.source, self.offset + start, stop - start, 0)

    def position(self, start: int) -> int:
        return self.offset + start


@dataclass(frozen=True, slots=True, eq=False)
class Joined(Bytes):
    """Interleaved parts: ``sizes[i]`` bytes of part i, all parts in turn, ``times`` times.

    Along the first axis, ``times`` is 1 and each part is complete; along a later axis, each turn
    takes the bytes of each part for one index of the preceding axes.
    """

    parts: tuple[Bytes, ...]
    sizes: tuple[int, ...]
    times: int
    _ends: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ends", tuple(accumulate(self.sizes)))

    @property
    def nbytes(self) -> int:
        return self._ends[-1] * self.times

    @property
    def key(self) -> Hashable:
        return "joined", tuple(part.key for part in self.parts), self.sizes, self.times

    def describe(self, identity: Callable[[Source], str]) -> str:
        parts = ",".join(
            f"{size}:{part.describe(identity)}"
            for part, size in zip(self.parts, self.sizes, strict=True)
        )
        return f"joined({parts})*{self.times}"

    def ranges(self) -> Iterator[Range]:
        for part in self.parts:
            yield from part.ranges()

    def items(self) -> Iterator[int]:
        for part in self.parts:
            yield from part.items()

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        period, origin = self._ends[-1], start
        while start < stop:
            turn, inside = divmod(start, period)
            number = bisect_right(self._ends, inside)
            size = self.sizes[number]
            begin = inside - (self._ends[number] - size)
            length = min(size - begin, stop - start)
            first = turn * size + begin
            yield from _runs_shifted(self.parts[number], first, first + length, start - origin)
            start += length

    def stored(self, start: int, stop: int) -> int:
        return _stored_bytes(self, start, stop) if self.has_holes else stop - start

    @property
    def has_holes(self) -> bool:
        return any(part.has_holes for part in self.parts)


@dataclass(frozen=True, slots=True, eq=False)
class Rows(Bytes):
    """Rows of ``whole``, of ``row_bytes`` bytes each, in another order.

    Rows ``[first[i], first[i + 1])`` are those of ``whole`` from ``origin[i]`` on, or missing if
    that is -1; ``present[i]`` is the number of rows before ``first[i]`` that are not missing.
    """

    whole: Bytes
    row_bytes: int
    first: array[int]
    origin: array[int]
    present: array[int]
    digest: str

    @staticmethod
    def of(whole: Bytes, row_bytes: int, numbers: Iterable[int]) -> Rows:
        """Row i is row ``numbers[i]`` of ``whole``, or missing if that is -1."""
        first, origin, present = array("q"), array("q"), array("q")
        expected, count, there = -2, 0, 0
        for count, number in enumerate(numbers, start=1):
            if number != expected:
                first.append(count - 1)
                origin.append(number)
                present.append(there)
            if number >= 0:
                expected, there = number + 1, there + 1
            else:
                expected = -1
        first.append(count)
        present.append(there)
        digest = hashlib.blake2b(first.tobytes() + origin.tobytes(), digest_size=12).hexdigest()
        return Rows(whole, row_bytes, first, origin, present, digest)

    @property
    def nbytes(self) -> int:
        return self.first[-1] * self.row_bytes

    @property
    def key(self) -> Hashable:
        return "rows", self.whole.key, self.row_bytes, self.digest

    def describe(self, identity: Callable[[Source], str]) -> str:
        return f"rows({self.whole.describe(identity)},{self.row_bytes},{self.digest})"

    def ranges(self) -> Iterator[Range]:
        yield from self.whole.ranges()

    def items(self) -> Iterator[int]:
        return self.whole.items()

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        begin, size = start, self.row_bytes
        number = bisect_right(self.first, start // size) - 1 if size else 0
        while start < stop:
            end = min(self.first[number + 1] * size, stop)
            origin = self.origin[number]
            if origin < 0:
                yield Run(None, 0, end - start, start - begin)
            else:
                there = (origin - self.first[number]) * size + start
                yield from _runs_shifted(self.whole, there, there + end - start, start - begin)
            start, number = end, number + 1

    def stored(self, start: int, stop: int) -> int:
        if self.whole.has_holes:
            return _stored_bytes(self, start, stop)
        return self._present(stop) - self._present(start)

    @property
    def has_holes(self) -> bool:
        return self.present[-1] < self.first[-1] or self.whole.has_holes

    def _present(self, position: int) -> int:
        """Number of stored dense bytes before ``position``."""
        if not position:
            return 0
        number = bisect_right(self.first, (position - 1) // self.row_bytes) - 1
        there = self.present[number] * self.row_bytes
        missing = self.origin[number] < 0
        return there if missing else there + position - self.first[number] * self.row_bytes


@dataclass(frozen=True, slots=True, eq=False)
class Strided(Bytes):
    """Elements of ``item`` bytes at regular distances in ``whole``.

    Element (i, j, …) of ``shape`` is at byte ``offset + i·strides[0] + j·strides[1] + …``.
    """

    whole: Bytes
    offset: int
    item: int
    shape: Shape
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.item

    @property
    def key(self) -> Hashable:
        return "strided", self.whole.key, self.offset, self.item, self.shape, self.strides

    def describe(self, identity: Callable[[Source], str]) -> str:
        whole = self.whole.describe(identity)
        return f"strided({whole},{self.offset},{self.item},{self.shape},{self.strides})"

    def ranges(self) -> Iterator[Range]:
        yield from self.whole.ranges()

    def items(self) -> Iterator[int]:
        yield self.item
        yield from self.whole.items()

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        if start == stop:
            return
        item = self.item
        begin, end = start // item, stop // item
        assert begin * item == start
        assert end * item == stop
        # Along dimension `along`, elements are contiguous in `whole`: for each index of the other
        # dimensions, that is one run, which goes to every `inside`th element.
        shape, strides = _collapsed(self.shape, self.strides, item)
        along = strides.index(item)
        count, inside = shape[along], math.prod(shape[along + 1 :])
        before = list(zip(shape[:along], strides[:along], strict=True))
        after = list(zip(shape[along + 1 :], strides[along + 1 :], strict=True))
        for outer in range(begin // (count * inside), -(-end // (count * inside))):
            base = self.offset + _distance(outer, before)
            for inner in range(inside):
                low = max(0, -((inner - begin) // inside) - outer * count)
                high = min(count, -((inner - end) // inside) - outer * count)
                if low < high:
                    there = base + _distance(inner, after) + low * item
                    at = ((outer * count + low) * inside + inner - begin) * item
                    for run in self.whole.runs(there, there + (high - low) * item):
                        yield _spread_out(run, at, item, inside * item)

    def stored(self, start: int, stop: int) -> int:
        return _stored_bytes(self, start, stop) if self.has_holes else stop - start

    @property
    def has_holes(self) -> bool:
        return self.whole.has_holes


def part_of(whole: Bytes, start: int, nbytes: int) -> Bytes:
    """Dense bytes ``[start, start + nbytes)`` of ``whole``."""
    if isinstance(whole, Range):
        return Range(whole.source, whole.offset + start, nbytes)
    if (start, nbytes) == (0, whole.nbytes):
        return whole
    return Strided(whole, start, 1, (nbytes,), (1,))


def at_strides(
    whole: Bytes, offset: int, item: int, shape: Shape, strides: tuple[int, ...]
) -> Bytes:
    """`Strided`, or a simpler equivalent."""
    if not math.prod(shape):
        return part_of(whole, 0, 0)
    if _collapsed(shape, strides, item) == ((math.prod(shape),), (item,)):
        return part_of(whole, offset, math.prod(shape) * item)
    if any(size not in (1, item) for size in whole.items()):
        raise ValueError(f"elements of {item} bytes cannot be moved one by one: others were")
    return Strided(whole, offset, item, shape, strides)


def _collapsed(
    shape: Shape, strides: tuple[int, ...], item: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The same elements in the same order, with as few dimensions as possible.

    One has the stride ``item``, if possible the longest.
    """
    sizes: list[int] = []
    distances: list[int] = []
    for size, distance in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if sizes and distances[-1] == size * distance:
            sizes[-1], distances[-1] = sizes[-1] * size, distance
        else:
            sizes.append(size)
            distances.append(distance)
    if item not in distances:
        return (*sizes, 1), (*distances, item)
    return tuple(sizes), tuple(distances)


def _distance(index: int, dimensions: Sequence[tuple[int, int]]) -> int:
    """Bytes from the first element to element ``index`` in row-major order, by (size, stride)."""
    far = 0
    for size, stride in reversed(dimensions):
        index, inside = divmod(index, size)
        far += inside * stride
    return far


def _runs_shifted(bytes_: Bytes, start: int, stop: int, by: int) -> Iterator[Run]:
    for run in bytes_.runs(start, stop):
        yield Run(run.source, run.position, run.length, run.at + by, run.item, run.step)


def _spread_out(run: Run, at: int, item: int, step: int) -> Run:
    """A run of elements of ``item`` bytes, with neighbours placed ``step`` bytes apart."""
    if step == item:
        return Run(run.source, run.position, run.length, at + run.at, run.item, run.step)
    apart = run.step // item * step if run.item else step
    return Run(run.source, run.position, run.length, at + run.at // item * step, item, apart)


def _stored_bytes(bytes_: Bytes, start: int, stop: int) -> int:
    return sum(run.length for run in bytes_.runs(start, stop) if run.source is not None)
