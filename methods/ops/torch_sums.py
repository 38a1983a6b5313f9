"""Sums of many magnitudes that are exact to float32 rounding, and the same with compiled loops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergeloom.methods.ops.loops.sizes import RUN

if TYPE_CHECKING:
    from torch import Tensor


def magnitude_sum(magnitudes: Tensor, work: Tensor) -> Tensor:
    """The sum of numbers that are not negative, to float32 rounding: 0-d, float64.

    They are float32, of any shape, contiguous; ``work`` is scratch of their size. Runs of `RUN`
    are summed up by adding halves to each other, which is the same on every machine.
    """
    import torch

    flat = magnitudes.view(-1)
    edge = flat.numel() - flat.numel() % RUN
    runs = [_run_sums(flat[:edge], work.view(-1))] if edge else []
    if edge < flat.numel():
        last = torch.nn.functional.pad(flat[edge:], (0, RUN - (flat.numel() - edge)))
        runs.append(_run_sums(last, torch.empty_like(last)))
    return sum_of_runs(torch.cat(runs))


def sum_of_runs(runs: Tensor) -> Tensor:
    """The sum of sums of runs (float32): 0-d, float64."""
    import torch

    return runs.sum(dtype=torch.float64)


def _run_sums(flat: Tensor, work: Tensor) -> Tensor:
    """The sums of runs of `RUN` elements."""
    import torch

    rows, half = flat.view(-1, RUN), RUN // 2
    sums = work[: flat.numel() // 2].view(-1, half)
    torch.add(rows[:, :half], rows[:, half:], out=sums)
    while half > 1:
        half //= 2
        sums[:, :half].add_(sums[:, half : 2 * half])
    return sums[:, 0]
