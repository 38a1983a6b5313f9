"""Dot products in float64 that are the same with compiled loops.

Products of two float32 numbers are exact in float64, so only the order of the sums matters. Runs
of `DOT_RUN` elements are rows of `LANES`: the rows are added up one by one, then the halves of what
remains. That suits the registers of a processor and the operations of torch alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from mergeloom.methods.ops.loops.sizes import DOT_RUN, LANES

if TYPE_CHECKING:
    from torch import Tensor


def pairs(count: int) -> list[tuple[int, int]]:
    """The pairs of ``count`` vectors, in the order of their dot products."""
    return [(i, j) for i in range(count) for j in range(i + 1)]


def dot_products(vectors: Sequence[Tensor], take: Callable[[], Tensor]) -> Tensor:
    """The dot products of all `pairs` of vectors: (pairs,), float64.

    The vectors are float32, flat and of one length; ``take`` gives a float32 scratch tensor of
    that length, and is called once for each of them and once more.
    """
    import torch

    chosen = pairs(len(vectors))
    if vectors[0].device.type != "cpu":  # no loop is to be equal to, and every call costs time
        doubles = [vector.double() for vector in vectors]
        return torch.stack([torch.dot(doubles[i], doubles[j]) for i, j in chosen])
    runs = []
    for *doubles, work in _widened(vectors, take):
        runs.append(torch.stack([_run_sums(doubles[i], doubles[j], work) for i, j in chosen]))
    return sum_of_runs(torch.cat(runs, 1))


def sum_of_runs(runs: Tensor) -> Tensor:
    """The dot products from those of runs, (pairs, runs): (pairs,), float64."""
    return runs.sum(1)


def workspace_bytes(count: int, elements: int) -> int:
    """What the dot products of ``count`` vectors allocate, in bytes, scratch apart."""
    # The sums of runs twice, and what is too short for scratch tensors.
    return 16 * len(pairs(count)) * (elements // DOT_RUN + 2) + 32 * DOT_RUN * (count + 1)


def _widened(vectors: Sequence[Tensor], take: Callable[[], Tensor]) -> Iterator[list[Tensor]]:
    """The vectors in float64, in parts of whole runs, and work as long; valid until the next."""
    import torch

    elements = vectors[0].numel()
    scratch = [take().view(-1) for _ in range(len(vectors) + 1)]
    # A scratch tensor holds half as many float64 numbers.
    step = elements // (2 * DOT_RUN) * DOT_RUN
    buffers = [each[: 2 * step].view(torch.float64) for each in scratch]
    edge = 2 * step
    for start in range(0, edge, max(step, 1)):
        for vector, buffer in zip(vectors, buffers, strict=False):
            buffer.copy_(vector[start : start + step])
        yield buffers
    if edge < elements:
        filled = -(-(elements - edge) // DOT_RUN) * DOT_RUN
        buffers = list(torch.zeros(len(vectors) + 1, filled, dtype=torch.float64))
        for vector, buffer in zip(vectors, buffers, strict=False):
            buffer[: elements - edge] = vector[edge:]
        yield buffers


def _run_sums(one: Tensor, other: Tensor, work: Tensor) -> Tensor:
    """The dot products of runs; overwrites ``work``."""
    import torch

    rows = DOT_RUN // LANES
    left, right = one.view(-1, rows, LANES), other.view(-1, rows, LANES)
    sums = work[: left.shape[0] * LANES].view(-1, LANES)
    torch.mul(left[:, 0], right[:, 0], out=sums)
    for row in range(1, rows):
        sums.addcmul_(left[:, row], right[:, row])
    half = LANES // 2
    while half:
        sums[:, :half].add_(sums[:, half : 2 * half])
        half //= 2
    return sums[:, 0].clone()
