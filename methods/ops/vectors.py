"""Vectors that statistics and kernels work on: inputs, or functions of inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import GrainView, Use
from mergeloom.methods.ops.interface import Vector


class VectorExpr(ABC):
    """Vectors that are functions of a grain's inputs; subclass as a frozen dataclass."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of vectors."""

    @property
    def scratch(self) -> int:
        """Scratch arrays that one call of `read` takes."""
        return 0

    @property
    def uses(self) -> tuple[Use, ...]:
        """The operations of ``grain.ops`` that `read` uses."""
        return ()

    def with_results(self, earlier: Sequence[Any]) -> VectorExpr:
        """The same vectors, with the results of the earlier passes of the kernel if they need
        any."""
        return self

    @abstractmethod
    def read(self, number: int, grain: GrainView) -> Vector:
        """Vector ``number`` on this grain."""

    def read_all(self, grain: GrainView) -> list[Vector]:
        """All vectors on this grain."""
        return [self.read(number, grain) for number in range(self.count)]


@dataclass(frozen=True)
class Inputs(VectorExpr):
    """The inputs at ``positions`` themselves."""

    positions: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.positions)

    def read(self, number: int, grain: GrainView) -> Vector:
        return Vector(grain.inputs[self.positions[number]])


@dataclass(frozen=True)
class Differences(VectorExpr):
    """Task vectors τᵢ = θᵢ - θ₀ of the inputs at ``positions``, rounded to float32."""

    base: int
    positions: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.positions)

    def read(self, number: int, grain: GrainView) -> Vector:
        return Vector(grain.inputs[self.positions[number]], grain.inputs[self.base])


def vectors_of(positions: tuple[int, ...], base: int | None) -> VectorExpr:
    """The inputs at ``positions``, or their differences from a base."""
    return Inputs(positions) if base is None else Differences(base, positions)
