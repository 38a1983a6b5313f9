"""Rows of a tensor in another order, some missing: of a stored one, and of one that is made."""

from __future__ import annotations

from collections.abc import Sequence

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.graph.graph import GraphBuilder, Load, Merge
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.methods.inputs.fill_rows import FillRows
from mergeloom.methods.kernels.linear_combination import LinearCombination

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


def rearranged(
    builder: GraphBuilder, merge: Merge, rows: Sequence[int], stage: str
) -> Load | Merge:
    """``rows`` of what a ``stage`` makes.

    Where its kernels make each row of the same row of their inputs, the rows of the inputs are
    rearranged instead. That is not so where the result depends on the whole tensor.

    Raises:
        CheckpointError: it does.
    """
    axis = row_axis(merge.shape)
    if len(rows) == merge.shape[axis] and all(i == row for i, row in enumerate(rows)):
        return merge
    inputs: list[Load | Merge] = []
    side = list(merge.gather.side)
    kernel = merge.kernel
    if isinstance(kernel, FillRows) and not kernel.padding:
        (table,) = side
        side = [_load(builder, table, rows)]
    elif not isinstance(kernel, (Copy, LinearCombination)) or side:
        raise CheckpointError(
            f"stage '{stage}' makes '{merge.name}' by a method that looks at the whole tensor, so "
            "that its rows cannot be rearranged for another vocabulary",
            remedy="give both stages one tokenizer, or merge the stage by itself first",
        )
    for node in merge.gather.inputs:
        if isinstance(node, Load):
            inputs.append(_load(builder, node, rows))
        else:
            inputs.append(rearranged(builder, node, rows, stage))
    return builder.merge(inputs, kernel, merge.name, side=side)


def _load(builder: GraphBuilder, load: Load, rows: Sequence[int]) -> Load:
    stored = arranged(StoredTensor(load.bytes, load.dtype, load.shape), rows)
    return builder.load_bytes(stored.bytes, stored.dtype, stored.shape, load.name)
