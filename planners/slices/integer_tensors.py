"""Integer tensors are copied, not merged; this tells whether the models agree on them.

They are the one kind of tensor whose bytes are looked at while planning: position ids and
counters, a few kilobytes.
"""

from __future__ import annotations

from mergeloom.engine.run.arrange import content
from mergeloom.engine.storage.source import Access
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
    nbytes = entry.bytes.nbytes
    return nbytes if nbytes > MAX_COMPARED_BYTES else bytes(content(entry, Access()))
