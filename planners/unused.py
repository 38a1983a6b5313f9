"""Input tensors that the output does not use, with reasons; none is dropped silently."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import accumulate
from operator import attrgetter

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import Graph
from mergeloom.engine.graph.pieces import Range
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.planners.models.checkpoint import Checkpoint
from mergeloom.planners.models.roles import is_buffer
from mergeloom.planners.models.stored_tensors import located
from mergeloom.planners.outline import layer_ranges
from mergeloom.planners.recipe import LeftOutReason


@dataclass(frozen=True, slots=True)
class Unused:
    """Tensors of one model that are left out for the same reason.

    ``layers`` are the affected layers of the input as half-open ranges, empty for other weights;
    ``names`` are all tensors in checkpoint order; ``nbytes`` is their size.
    """

    model: str
    reason: str
    layers: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
    nbytes: int


def unused_tensors(
    models: Mapping[str, Checkpoint], graph: Graph, left_out: Callable[[str, str], LeftOutReason]
) -> Iterator[Unused]:
    """All tensors of ``models`` that no load of ``graph`` reads, grouped by model and reason;
    ``left_out`` returns the reason for a tensor of a model."""
    used = _ReadRanges(graph)
    dtypes = {id(dtype): dtype for dtype in map(_dtype, graph.loads)}
    integers: set[str] = set()
    if not all(dtype.floating for dtype in dtypes.values()):
        integers = {load.name for load in graph.loads if not load.dtype.floating}
    seen: set[int] = set()
    for name, checkpoint in models.items():
        if id(checkpoint) in seen:
            continue
        seen.add(id(checkpoint))
        groups: dict[str, list[str]] = defaultdict(list)
        layers: dict[str, set[int]] = defaultdict(set)
        tensors = checkpoint.tensors
        found = located(tensors)
        if len(found) == len(tensors) and used.whole.issuperset(
            map(id, map(_bytes, found.values()))
        ):
            continue  # as mostly
        left = [
            tensor
            for tensor, stored in tensors.items()
            if id(stored.bytes) not in used.whole and not used.reads(tensor, stored)
        ]
        if len(left) == len(tensors):
            yield _unused(name, checkpoint, "the output uses nothing of it", left, set())
            continue
        for tensor in left:
            layer = None
            if tensor in integers:
                reason = "integers are not merged: another model's are copied"
            elif is_buffer(tensor, checkpoint.described[tensor].shape):
                reason = "constants are not merged: another model's are copied"
            else:
                reason, layer = left_out(name, tensor)
            if layer is not None:
                layers[reason].add(layer)
            groups[reason].append(tensor)
        for reason, names in groups.items():
            yield _unused(name, checkpoint, reason, names, layers[reason])


_bytes, _dtype = attrgetter("bytes"), attrgetter("dtype")


class _ReadRanges:
    """The byte ranges of sources that the loads of a graph read."""

    def __init__(self, graph: Graph) -> None:
        self._loads = graph.loads
        self.whole = set(map(id, map(_bytes, graph.loads)))
        """The `id` of the bytes of tensors read as stored, which are most."""

    @cached_property
    def _names(self) -> set[str]:
        return {load.name for load in self._loads}

    @cached_property
    def _ranges_by_source(self) -> dict[int, tuple[list[int], list[int]]]:
        """By `id` of the source: the starts of ranges in order, and for each start the furthest end
        so far."""
        runs: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for load in self._loads:
            for part in load.bytes.ranges():
                runs[id(part.source)].append((part.offset, part.offset + part.length))
        result = {}
        for source, found in runs.items():
            found.sort()
            ends = list(accumulate((end for _, end in found), max))
            result[source] = [start for start, _ in found], ends
        return result

    def reads(self, name: str, stored: StoredTensor) -> bool:
        """Whether any byte of a tensor is read; for an empty tensor, whether its ``name`` is
        used."""
        if not stored.bytes.nbytes:
            return name in self._names
        return any(self._overlaps(part) for part in stored.bytes.ranges())

    def _overlaps(self, part: Range) -> bool:
        starts, ends = self._ranges_by_source.get(id(part.source), ([], []))
        before = bisect_left(starts, part.offset + part.length)
        return before > 0 and ends[before - 1] > part.offset


def _unused(
    model: str, checkpoint: Checkpoint, reason: str, names: list[str], layers: set[int]
) -> Unused:
    entries = [checkpoint.tensors[tensor] for tensor in names]
    nbytes = sum(entry.bytes.nbytes for entry in entries)
    return Unused(model, reason, layer_ranges(layers), tuple(names), nbytes)
