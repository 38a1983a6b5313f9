"""Tasks for the low-rank factors of a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mergeloom.engine.graph.graph import GraphBuilder, Load
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.methods.kernels.leading_factors import LeadingFactors


def leading_factors(
    builder: GraphBuilder, kernel: LeadingFactors, side: Sequence[Load], name: str
) -> tuple[StoredTensor, StoredTensor]:
    """The lower factor (rank, columns) and the upper one (rows, rank), float32: one merge computes
    both, and stores them in a temporary file."""
    like = StoredTensor(side[0].bytes, side[0].dtype, side[0].shape)
    lower, upper = kernel.rank * kernel.columns, kernel.rank * kernel.rows
    nothing = load_stored(builder, zeros(like, (lower + upper,)), name)
    load = builder.spill(builder.merge([nothing], kernel, name, side))
    both = StoredTensor(load.bytes, load.dtype, load.shape)
    return (
        both.narrow(0, 0, lower).reshape((kernel.rank, kernel.columns)),
        both.narrow(0, lower, lower + upper).reshape((kernel.rows, kernel.rank)),
    )


def load_stored(builder: GraphBuilder, stored: StoredTensor, name: str) -> Load:
    return builder.load_bytes(stored.bytes, stored.dtype, stored.shape, name)


def zeros(like: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    """Zeros of a shape, without bytes in a file; dtype and source are those of ``like``."""
    total = math.prod(like.shape)
    times = -(-math.prod(shape) // total)
    holes = like.reshape((1, total)).rows([-1] * times).reshape((times * total,))
    return holes.narrow(0, 0, math.prod(shape)).reshape(shape)
