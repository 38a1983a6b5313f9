"""Small kernels with which the engine is tested: one of each kind that it must support."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.graph.kernel import GrainView, Kernel, Statistic, Use
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.methods.ops.interface import Vector


@dataclass(frozen=True)
class Weighted(Kernel):
    """Sum of weighted inputs."""

    weights: tuple[float, ...]

    def apply(self, grain: GrainView, out: Any, statistics: Any, prefix: Any) -> None:
        out.zero_()
        for weight, tensor in zip(self.weights, grain.inputs, strict=True):
            out.add_(tensor, alpha=weight)


class Moment(Statistic[GrainSums, float]):
    """Sum of squares of the first input, and how often it ran."""

    scratch = 1

    def init(self) -> GrainSums:
        return GrainSums()

    def update(self, into: GrainSums, grain: GrainView, earlier: Sequence[Any]) -> None:
        square = grain.take()
        import torch

        torch.mul(grain.inputs[0], grain.inputs[0], out=square)
        into.add(grain.index, float(square.double().sum()))

    def combine(self, into: GrainSums, other: GrainSums) -> None:
        into.combine(other)

    def finalize(self, total: GrainSums, earlier: Sequence[Any]) -> float:
        return float(total.total or 0.0) ** 0.5 + sum(earlier)


@dataclass(frozen=True)
class Normalised(Kernel):
    """The sum of the inputs over a chain of two statistics: passes that build on each other."""

    scratch = 0
    access = Access.ELEMENTWISE

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        return (Moment(), Moment())

    def apply(self, grain: GrainView, out: Any, statistics: Any, prefix: Any) -> None:
        out.zero_()
        for tensor in grain.inputs:
            out.add_(tensor)
        out.div_(1.0 + statistics[0] + statistics[1])


@dataclass(frozen=True)
class FirstPositives(Kernel):
    """The first input's first ``limit`` positive elements; the rest is zero."""

    limit: int
    scratch = 2

    def needs_scan(self, statistics: Sequence[Any]) -> bool:
        return True

    def scan_value(self, grain: GrainView, statistics: Sequence[Any]) -> tuple[int, ...]:
        return (int((grain.inputs[0] > 0).sum()),)

    def apply(self, grain: GrainView, out: Any, statistics: Any, prefix: Any) -> None:
        positive = grain.inputs[0] > 0
        rank = positive.cumsum(0) + prefix[0]
        out.copy_(grain.inputs[0] * (positive & (rank <= self.limit)))


@dataclass(frozen=True)
class RowMean(Kernel):
    """Each row minus its own mean: a rowwise kernel."""

    access = Access.ROWWISE

    def apply(self, grain: GrainView, out: Any, statistics: Any, prefix: Any) -> None:
        out.copy_(grain.inputs[0] - grain.inputs[0].mean(dim=-1, keepdim=True))


@dataclass(frozen=True)
class Transposed(Kernel):
    """A matrix plus its column sums: a whole kernel."""

    access = Access.WHOLE

    def apply(self, grain: GrainView, out: Any, statistics: Any, prefix: Any) -> None:
        out.copy_(grain.inputs[0] + grain.inputs[0].double().sum(0, keepdim=True).float())


class Remembering(Statistic[list[int], None]):
    """Leaves a memo of every grain, where there is room for it."""

    def init(self) -> list[int]:
        return []

    def update(self, into: list[int], grain: GrainView, earlier: Sequence[Any]) -> None:
        if grain.memo is not None:
            ctypes.memset(grain.memo.address, 1 + grain.index % 99, grain.memo.count)

    def combine(self, into: list[int], other: list[int]) -> None:
        pass

    def finalize(self, total: list[int], earlier: Sequence[Any]) -> None:
        return None


@dataclass(frozen=True)
class Remembered(Kernel):
    """Finds what its statistic has left; keeps in ``seen`` whether it was there."""

    weights: tuple[float, ...]
    seen: list[bool] = field(default_factory=list, hash=False, compare=False)
    passes = (Remembering(),)
    uses = (Use("combine", 2),)

    def memo_bytes(self, grains: Grains) -> int:
        return -(-grains.size // 8)

    def apply(self, grain: GrainView, out: Any, statistics: Any, prefix: Any) -> None:
        if grain.memo is not None:
            found = ctypes.string_at(grain.memo.address, grain.memo.count)
            assert found == bytes([1 + grain.index % 99]) * len(found)
            assert len(found) >= grain.count / 8
        self.seen.append(grain.memo is not None)
        grain.ops.combine([Vector(each) for each in grain.inputs], self.weights, out)
