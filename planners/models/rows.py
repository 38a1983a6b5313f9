"""Selects rows of stored and of computed tensors, in any order; some rows may be missing."""

from __future__ import annotations

from collections.abc import Sequence

from mergeloom.engine.graph.graph import GraphBuilder, Load, Merge
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.graph.stored_tensor import StoredTensor

Shape = tuple[int, ...]


def row_axis(shape: Shape) -> int:
    """The dimension of rows: the first that is longer than 1."""
    return next((axis for axis, size in enumerate(shape) if size > 1), 0)


def stored_rows(stored: StoredTensor, rows: Sequence[int] | None) -> StoredTensor:
    """``rows`` of a stored tensor by index, -1 for a missing row; all rows if ``None``."""
    if rows is None:
        return stored
    axis = row_axis(stored.shape)
    before, after = stored.shape[:axis], stored.shape[axis + 1 :]
    taken = stored.reshape(stored.shape[axis:]).rows(rows)
    return taken.reshape((*before, len(rows), *after))


def uncoded_load(builder: GraphBuilder, node: Load | Merge, name: str) -> Load:
    """``node`` as a load of elements that are not packed or coded; other values are first written
    to a temporary file."""
    if isinstance(node, Load) and node.dtype.block == 1 and not node.dtype.codec:
        return node
    return builder.spill(builder.merge([node], Copy(), name) if isinstance(node, Load) else node)


def computed_rows(builder: GraphBuilder, node: Load | Merge, rows: Sequence[int]) -> Load:
    """``rows`` of a stored or computed tensor by index, -1 for a missing row.

    The reader arranges the rows of a stored tensor; a computed tensor is first written to a
    temporary file.
    """
    while isinstance(node, Merge) and isinstance(node.kernel, Copy):
        (node,) = node.gather.inputs
    load = node if isinstance(node, Load) else builder.spill(node)
    stored = stored_rows(StoredTensor(load.bytes, load.dtype, load.shape), rows)
    return builder.load_bytes(stored.bytes, stored.dtype, stored.shape, load.name)
