"""How far the softmax of rows moves, in float64, as it is a difference of numbers far larger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergeloom.methods.ops.loops.sizes import ROW_LANES
from mergeloom.methods.ops.torch_exp import exponential_

if TYPE_CHECKING:
    from torch import Tensor

    from mergeloom.methods.ops.compiled_ops import Loops

_CHUNK = 1 << 16
"""Elements that are worked on at once on the CPU: their numbers stay in a cache."""


def divergences(base: Tensor, other: Tensor, loops: Loops | None = None) -> Tensor:
    """KL(p₁‖p₀) of each row of two matrices, p = softmax of the row: float64, a column.

    Σ p₁ log(p₁/p₀) = Σ p₁τ - log Σ exp θ₁ + log Σ exp θ₀
    """
    sums = loops.softmax_sums(base, other) if loops else softmax_sums(base, other)
    base_highest, highest, base_total, total, weighted = sums.unbind()
    moved = weighted.div_(total).add_(base_highest.sub_(highest))
    divergence: Tensor = moved.add_(base_total.div_(total).log_()).clamp_min_(0.0)
    return divergence.unsqueeze(1)


def softmax_sums(base: Tensor, other: Tensor) -> Tensor:
    """What divergences are made of, for each row: float64, (5, rows).

    The highest elements h₀ and h₁ of the base and of the other, Σ exp(θ₀ - h₀), Σ exp(θ₁ - h₁), and
    Σ exp(θ₁ - h₁) τ. On the CPU all of it is the same, bit for bit, with compiled loops: element i
    of a row is added to sum i mod `ROW_LANES`, then the halves of what remains to each other.
    """
    import torch

    if base.device.type != "cpu":  # no loop is to be equal to, and its own way is much faster
        return native_softmax_sums(base, other)
    rows, row = base.shape
    sums = torch.empty(5, rows, dtype=torch.float64)
    many = min(max(_CHUNK // row, 1), rows)
    room = torch.empty(3, many, row, dtype=torch.float64)
    lanes = torch.empty(3, many, min(row, ROW_LANES), dtype=torch.float64)
    for start in range(0, rows, many):
        count = min(many, rows - start)
        chunk = slice(start, start + count)
        _chunk_sums(base[chunk], other[chunk], room[:, :count], lanes[:, :count], sums[:, chunk])
    return sums


def native_softmax_sums(base: Tensor, other: Tensor) -> Tensor:
    """The same, with whatever exponential and order of sums torch has for the device."""
    import torch

    tops = [each.amax(1).double() for each in (base, other)]
    values = [
        (each.double() - top.unsqueeze(1)).exp_()
        for each, top in zip((base, other), tops, strict=True)
    ]
    weights = (other.double() - base) * values[1]
    return torch.stack([*tops, *(each.sum(1) for each in (*values, weights))])


def workspace_bytes(rows: int, row: int, looped: bool) -> int:
    """What divergences of so many rows allocate for a moment, in bytes."""
    chunk = 0 if looped else 2 * 3 * max(row, _CHUNK)
    return 8 * (chunk + 8 * max(rows, 1))


def _chunk_sums(base: Tensor, other: Tensor, room: Tensor, lanes: Tensor, sums: Tensor) -> None:
    """Write the `softmax_sums` of some rows to ``sums``; ``room`` and ``lanes`` are work."""
    values, powers, rests = room
    for rows, highest, folded in zip((base, other), sums, lanes, strict=False):
        highest.copy_(rows.amax(1))
        values.copy_(rows).sub_(highest.unsqueeze(1))
        _fold(exponential_(values, powers, rests), folded)
    # No bit of a difference of float32 numbers of like size is lost in float64.
    _fold(powers.copy_(other).sub_(base).mul_(values), lanes[2])
    width = lanes.shape[2]
    while width > 1:
        half = (width + 1) // 2
        lanes[:, :, : width - half].add_(lanes[:, :, half:width])
        width = half
    sums[2:] = lanes[:, :, 0]


def _fold(values: Tensor, lanes: Tensor) -> None:
    """Write the sums of columns that lie a width of ``lanes`` apart."""
    width = lanes.shape[1]
    lanes.zero_()
    for start in range(0, values.shape[1], width):
        part = values[:, start : start + width]
        lanes[:, : part.shape[1]].add_(part)
