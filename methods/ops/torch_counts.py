"""Counting how often each of the first whole numbers stands in a tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def add_counts(values: Tensor, into: Tensor, on_device: bool) -> None:
    """Add to ``into`` (int64), at each place, how many ``values`` (int32, flat) are that place.

    On a device torch would ask for the least and the largest value before it counts, and make
    everybody wait. Adding to the counters one by one needs no answer; whole numbers add up to the
    same in any order.
    """
    import torch

    if on_device:
        one = torch.ones((), dtype=into.dtype, device=into.device)
        into.scatter_add_(0, values.long(), one.expand(values.numel()))
        return
    counts = torch.bincount(values)
    into[: counts.numel()] += counts
