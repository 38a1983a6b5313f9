"""Checks a graph against its specification; a violation is a bug in a planner."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from operator import itemgetter

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.graph.graph import (
    Graph,
    GraphError,
    Load,
    Merge,
    OutputFile,
    Shape,
    Spill,
    Write,
    copied_dtype,
)
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.graph.pieces import Range


def verify(graph: Graph) -> None:
    """Check the specification of a graph.

    Raises:
        GraphError: shapes or dtypes disagree; write slots overlap or leave a gap in a file; two
        writes have the same name; a load or merge is not used; an input is outside its
        source, or its bytes do not match its shape.
    """
    sizes = _Sizes()
    spills, integers = _check_loads(graph.loads, sizes)
    _check_use(graph, spills)
    for merge in graph.merges:
        if integers or isinstance(merge.kernel, Copy):
            _check_merge(merge, integers)
    slots: dict[OutputFile, list[Write]] = {file: [] for file in graph.files}
    names: set[str] = set()
    for write in graph.writes:
        if write.name in names:
            raise GraphError(f"{write.name!r} is written twice")
        names.add(write.name)
        if write.file not in slots:
            raise GraphError(f"{write.name!r} goes to an unknown file")
        if not write.dtype.floating or isinstance(write.merge.kernel, Copy):
            _check_copy(write)
        slots[write.file].append(write)
    for file, inside in slots.items():
        _check_tiling(file, inside, sizes)


class _Sizes(dict[tuple[int, Shape], int]):
    """Bytes of tensors, computed once for equal dtypes and shapes."""

    def of(self, dtype: DType, shape: Shape) -> int:
        found = self.get((id(dtype), shape))
        if found is None:
            found = self[id(dtype), shape] = dtype.nbytes(math.prod(shape))
        return found


def _check_use(graph: Graph, spills: Collection[Spill]) -> None:
    """Check that tasks are listed if they are used, and used if they are listed; loads read
    ``spills``."""
    used: set[Load | Merge] = {write.merge for write in graph.writes}
    used.update(graph.measured)
    for merge in graph.merges:
        gather = merge.gather
        used.update(gather.inputs)
        if gather.side or gather.tables:
            used.update(gather.side_loads)
    used.update(spill.merge for spill in spills)
    if used != {*graph.loads, *graph.merges}:
        raise GraphError("a task is not used by any write, or is not listed")


def _check_loads(loads: Iterable[Load], sizes: _Sizes) -> tuple[set[Spill], set[Load]]:
    """Check that loads lie within their sources, and have the bytes of their dtypes and shapes;
    the spilled values that they read, and the loads of integers."""
    ends: dict[int, int] = {}
    """Sizes of sources, by `id`."""
    kinds: dict[int, tuple[DType, int]] = {}
    """Dtype and bytes by `id` of the shape, which tensors of one header share."""
    spills: set[Spill] = set()
    integers: set[Load] = set()
    for load in loads:
        stored, dtype, shape = load.bytes, load.dtype, load.shape
        for part in (stored,) if isinstance(stored, Range) else stored.ranges():
            source, start = part.source, part.offset
            end = ends.get(id(source))
            if end is None:
                end = ends[id(source)] = source.size
                if isinstance(source, Spill):
                    spills.add(source)
            if start < 0 or start + part.length > end:
                raise GraphError(f"{load.name!r} lies outside {source.name!r}")
        kind = kinds.get(id(shape))
        if kind is None or kind[0] is not dtype:
            if dtype.block > 1 and shape and shape[-1] % dtype.block:
                raise GraphError(f"rows of {load.name!r} are not whole blocks")
            kind = kinds[id(shape)] = dtype, sizes.of(dtype, shape)
        if stored.nbytes != kind[1]:
            raise GraphError(f"{load.name!r} has {stored.nbytes} bytes, not {kind[1]}")
        if not dtype.floating:
            integers.add(load)
    return spills, integers


def _check_merge(merge: Merge, integers: Collection[Load]) -> None:
    inputs = merge.gather.inputs
    if isinstance(merge.kernel, Copy):
        if len(inputs) != 1:
            raise GraphError(f"{merge.name!r} copies {len(inputs)} inputs")
    elif (
        integers and not merge.kernel.accepts_integers and any(node in integers for node in inputs)
    ):
        raise GraphError(f"{merge.name!r} computes with an integer tensor")


def _check_copy(write: Write) -> None:
    """Check that a write of integers, or of a copy, keeps integers as they are."""
    copied = copied_dtype(write.merge)
    integer = not write.dtype.floating or (copied is not None and not copied.floating)
    if integer and copied != write.dtype and not write.merge.kernel.parts:
        raise GraphError(f"{write.name!r} would change an integer tensor's dtype")


def _check_tiling(file: OutputFile, writes: Iterable[Write], sizes: _Sizes) -> None:
    end = len(file.header)
    slots = [(write.offset, sizes.of(write.dtype, write.merge.shape), write) for write in writes]
    for offset, nbytes, write in sorted(slots, key=itemgetter(0, 1)):
        if offset != end:
            raise GraphError(f"{file.name!r}: {write.name!r} at {offset}, expected {end}")
        end += nbytes
    if end != file.size:
        raise GraphError(f"{file.name!r} has {file.size} bytes, its slots end at {end}")
