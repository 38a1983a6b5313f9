"""Rows of a tensor in another order, some missing: of a stored one, and of one that is made."""

from __future__ import annotations

from collections.abc import Sequence

from mergeloom.engine.graph.graph import GraphBuilder, Load, Merge
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.graph.stored_tensor import StoredTensor

Shape = tuple[int, ...]


def row_axis(shape: Shape) -> int:
    """The dimension that rows lie along: the first that is longer than 1."""
    return next((axis for axis, size in enumerate(shape) if size > 1), 0)


def arranged(stored: StoredTensor, rows: Sequence[int] | None) -> StoredTensor:
    """``rows`` of a stored tensor by number, -1 for one that is missing; all if ``None``."""
    if rows is None:
        return stored
    axis = row_axis(stored.shape)
    before, after = stored.shape[:axis], stored.shape[axis + 1 :]
    taken = stored.reshape(stored.shape[axis:]).rows(rows)
    return taken.reshape((*before, len(rows), *after))


def rearranged(builder: GraphBuilder, node: Load | Merge, rows: Sequence[int]) -> Load:
    """``rows`` of a tensor, whatever it comes of, by number, -1 for one that is missing.

    The rows of what is stored are arranged by the reader; what is computed is spilled before.
    """
    while isinstance(node, Merge) and isinstance(node.kernel, Copy):
        (node,) = node.gather.inputs
    load = node if isinstance(node, Load) else builder.spill(node)
    stored = arranged(StoredTensor(load.bytes, load.dtype, load.shape), rows)
    return builder.load_bytes(stored.bytes, stored.dtype, stored.shape, load.name)
