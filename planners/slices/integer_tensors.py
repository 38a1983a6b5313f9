"""Integer tensors are copied, not merged; this tells whether the models agree on them.

They are the one kind of tensor whose bytes are looked at while planning: position ids and
counters, a few kilobytes.
"""

from __future__ import annotations

import math

from mergeloom.planners.models.model import StoredModel
from mergeloom.planners.slices.tensor_plan import Contribution

MAX_COMPARED_BYTES = 1 << 20


def equal_bytes(one: Contribution, other: Contribution) -> bool:
    """Whether two integer tensors are equal; large ones are taken to be if their sizes are."""
    first, second = _content(one), _content(other)
    return first == second


def _content(item: Contribution) -> bytes | int | None:
    if not isinstance(item.model, StoredModel):
        return None
    entry = item.model.checkpoint.tensors[item.tensor]
    nbytes = math.prod(entry.shape) * entry.dtype.size
    if nbytes > MAX_COMPARED_BYTES:
        return nbytes
    with open(entry.source.path, "rb") as file:
        file.seek(entry.offset)
        return file.read(nbytes)
