"""Whether models agree on what is copied and not merged: integers, constants."""

from __future__ import annotations

from mergeloom.planners.models.sameness import equal_bytes
from mergeloom.planners.slices.tensor_plan import Contribution


def equal_contents(one: Contribution, other: Contribution) -> bool:
    """Whether two copied tensors are equal; what an earlier stage makes counts as equal to that."""
    first, second = (item.model.stored(item.tensor) for item in (one, other))
    if first is None or second is None:
        return first is second
    return equal_bytes(first.entry, second.entry)
