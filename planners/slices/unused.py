"""What of the inputs does not reach the output, and why: nothing is dropped silently."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mergeloom.engine.graph.graph import Graph
from mergeloom.planners.models.checkpoint import Checkpoint
from mergeloom.planners.slices.document import TowerPlan


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
    models: Mapping[str, Checkpoint],
    graph: Graph,
    towers: Sequence[TowerPlan],
    tied_head: str | None,
) -> Iterator[Unused]:
    """Everything in ``models`` that no load of ``graph`` reads, grouped by model and reason.

    ``tied_head`` is the name of the output head where the output has none.
    """
    used = {(id(load.source), load.offset, load.name) for load in graph.loads}
    integers = {load.name for load in graph.loads if not load.dtype.floating}
    seen: set[int] = set()
    for name, checkpoint in models.items():
        if id(checkpoint) in seen:
            continue
        seen.add(id(checkpoint))
        groups: dict[str, list[str]] = defaultdict(list)
        layers: dict[str, set[int]] = defaultdict(set)
        left = [
            tensor
            for tensor, entry in checkpoint.tensors.items()
            if (id(entry.source), entry.offset, tensor) not in used
        ]
        if len(left) == len(checkpoint.tensors):
            yield _unused(name, checkpoint, "no slice uses it", left, set())
            continue
        for tensor in left:
            layer = _layer(tensor, towers)
            if tensor in integers:
                reason = "integers are not merged: another model's are copied"
            elif layer is not None:
                reason = "layers that no slice takes"
                layers[reason].add(layer)
            elif tensor == tied_head:
                reason = "the output head is tied to the embedding"
            else:
                reason = _outside_reason(tensor, towers)
            groups[reason].append(tensor)
        for reason, names in groups.items():
            yield _unused(name, checkpoint, reason, names, layers[reason])


def _unused(
    model: str, checkpoint: Checkpoint, reason: str, names: list[str], layers: set[int]
) -> Unused:
    entries = [checkpoint.tensors[tensor] for tensor in names]
    nbytes = sum(math.prod(entry.shape) * entry.dtype.size for entry in entries)
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
