"""What of the inputs does not reach the output, and why: nothing is dropped silently."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from mergeloom.engine.graph.graph import Graph
from mergeloom.engine.graph.pieces import Range
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.planners.models.alignment import RenamedModel
from mergeloom.planners.models.checkpoint import Checkpoint
from mergeloom.planners.models.roles import is_buffer
from mergeloom.planners.slices.stage import Stage, TowerPlan


@dataclass(frozen=True, slots=True)
class Unused:
    """Tensors of one model that are left out for one reason.

    ``layers`` are the input's layers concerned, as half-open ranges, empty for other weights;
    ``names`` all tensors in the checkpoint's order; ``nbytes`` their bytes.
    """

    model: str
    reason: str
    layers: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
    nbytes: int


def unused_tensors(
    models: Mapping[str, Checkpoint], graph: Graph, stage: Stage
) -> Iterator[Unused]:
    """Everything in ``models`` that no load of ``graph`` reads, grouped by model and reason."""
    towers = stage.towers
    same = _same_as_embedding(stage)
    used = _Used(graph)
    placed = tuple(_placed(towers))
    integers = {load.name for load in graph.loads if not load.dtype.floating}
    seen: set[int] = set()
    for name, checkpoint in models.items():
        if id(checkpoint) in seen:
            continue
        seen.add(id(checkpoint))
        groups: dict[str, list[str]] = defaultdict(list)
        layers: dict[str, set[int]] = defaultdict(set)
        left = [
            tensor for tensor, entry in checkpoint.tensors.items() if not used.reads(tensor, entry)
        ]
        if len(left) == len(checkpoint.tensors):
            yield _unused(name, checkpoint, "no slice uses it", left, set())
            continue
        called = _called(stage, name)
        for tensor in left:
            here = called.get(tensor, tensor)
            layer = _layer(here, towers)
            if tensor in integers:
                reason = "integers are not merged: another model's are copied"
            elif is_buffer(tensor, checkpoint.tensors[tensor].shape):
                reason = "constants are not merged: another model's are copied"
            elif layer is not None and here.endswith(placed):
                reason = "only the first or the last layer of the output has it"
            elif layer is not None:
                reason = "layers that no slice takes"
                layers[reason].add(layer)
            elif tensor in same:
                reason = f"its bytes are the embedding's, '{same[tensor]}'"
            else:
                reason = _outside_reason(here, towers)
            groups[reason].append(tensor)
        for reason, names in groups.items():
            yield _unused(name, checkpoint, reason, names, layers[reason])


def _called(stage: Stage, name: str) -> dict[str, str]:
    """The planner's names of a model's tensors by those under which they are stored."""
    found: dict[str, str] = {}
    for model in stage.models:
        if model.name == name and isinstance(model, RenamedModel):
            found |= {stored: new for new, stored in model.names.items()}
    return found


def _placed(towers: Sequence[TowerPlan]) -> set[str]:
    """Suffixes of what belongs to the first or the last place, in any of the models."""
    sources = (source for plan in towers for part in plan.slices for source in part.sources)
    return {suffix for source in sources for suffix in (*source.tower.first, *source.tower.last)}


class _Used:
    """The runs of sources that the loads of a graph are made of."""

    def __init__(self, graph: Graph) -> None:
        self._names = {load.name for load in graph.loads}
        runs: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for load in graph.loads:
            for part in load.bytes.ranges():
                runs[id(part.source)].append((part.offset, part.offset + part.length))
        self._runs: dict[int, tuple[list[int], list[int]]] = {}
        for source, found in runs.items():
            found.sort()
            ends = list(accumulate((end for _, end in found), max))
            self._runs[source] = [start for start, _ in found], ends

    def reads(self, name: str, stored: StoredTensor) -> bool:
        """Whether any byte of a tensor is read; of an empty one, whether it has its ``name``."""
        if not stored.bytes.nbytes:
            return name in self._names
        return any(self._touches(part) for part in stored.bytes.ranges())

    def _touches(self, part: Range) -> bool:
        starts, ends = self._runs.get(id(part.source), ([], []))
        before = bisect_left(starts, part.offset + part.length)
        return before > 0 and ends[before - 1] > part.offset


def _same_as_embedding(stage: Stage) -> dict[str, str]:
    """Weights that are their model's embedding once more, and that one's name, as stored."""
    found = {}
    for model in stage.models:
        tokens = model.tokens
        embedding = model.stored(tokens.embedding) if tokens.embedding is not None else None
        for name in tokens.twins if embedding is not None else ():
            twin = model.stored(name)
            if twin is not None and embedding is not None:
                found[twin.name] = embedding.name
    return found


def _unused(
    model: str, checkpoint: Checkpoint, reason: str, names: list[str], layers: set[int]
) -> Unused:
    entries = [checkpoint.tensors[tensor] for tensor in names]
    nbytes = sum(entry.bytes.nbytes for entry in entries)
    return Unused(model, reason, _ranges(layers), tuple(names), nbytes)


def _outside_reason(tensor: str, towers: Sequence[TowerPlan]) -> str:
    if any(tensor in plan.tower.before for plan in towers):
        return "weights before the layers come from the first slice"
    if any(tensor in plan.tower.after for plan in towers):
        return "weights after the layers come from the last slice"
    return "the base or first model has no such tensor"


def _layer(tensor: str, towers: Sequence[TowerPlan]) -> int | None:
    for plan in towers:
        prefix = plan.tower.prefix
        if prefix and tensor.startswith(prefix):
            number = tensor[len(prefix) :].partition(".")[0]
            if number.isdigit():
                return int(number)
    return None


def _ranges(layers: set[int]) -> tuple[tuple[int, int], ...]:
    ranges: list[tuple[int, int]] = []
    for layer in sorted(layers):
        if ranges and ranges[-1][1] == layer:
            ranges[-1] = (ranges[-1][0], layer + 1)
        else:
            ranges.append((layer, layer + 1))
    return tuple(ranges)
