"""The vectors that statistics measure and kernels combine: inputs, or what is computed of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeloom.engine.graph.kernel import GrainView
from mergeloom.methods.ops.descriptions import Operands

if TYPE_CHECKING:
    from torch import Tensor


class Source:
    """Vectors that are functions of a grain's inputs; subclass as a frozen dataclass."""

    @property
    def count(self) -> int:
        """Number of vectors."""
        raise NotImplementedError

    @property
    def scratch(self) -> int:
        """Scratch tensors that one call of `write` takes at most."""
        return 0

    @property
    def double(self) -> bool:
        """Whether `write` computes in float64."""
        return False

    @property
    def computed(self) -> bool:
        """Whether `operands` computes anything, instead of telling where it is stored."""
        return True

    def given(self, earlier: Sequence[Any]) -> Source:
        """The source that knows the results of the kernel's earlier passes, if it needs any."""
        return self

    def write(self, number: int, grain: GrainView, out: Tensor) -> None:
        """Write vector ``number`` on this grain to ``out``: float32, of the inputs' shape."""
        raise NotImplementedError

    def read(self, number: int, grain: GrainView, scratch: Tensor) -> Tensor:
        """Vector ``number``, not to be changed: in ``scratch``, or where it lies already."""
        self.write(number, grain, scratch)
        return scratch

    def operands(self, number: int, grain: GrainView, take: Callable[[], Tensor]) -> Operands:
        """Vector ``number`` for compiled loops, not to be changed; ``take`` gives scratch."""
        return self.read(number, grain, take()), None


@dataclass(frozen=True)
class Inputs(Source):
    """The inputs at ``positions`` themselves."""

    positions: tuple[int, ...]
    computed = False

    @property
    def count(self) -> int:
        return len(self.positions)

    def write(self, number: int, grain: GrainView, out: Tensor) -> None:
        out.copy_(grain.inputs[self.positions[number]])

    def read(self, number: int, grain: GrainView, scratch: Tensor) -> Tensor:
        return grain.inputs[self.positions[number]]

    def operands(self, number: int, grain: GrainView, take: Callable[[], Tensor]) -> Operands:
        return operand(grain, self.positions[number]), None


@dataclass(frozen=True)
class Differences(Source):
    """Task vectors τᵢ = θᵢ - θ₀ of the inputs at ``positions``, rounded to float32."""

    base: int
    positions: tuple[int, ...]
    computed = False

    @property
    def count(self) -> int:
        return len(self.positions)

    def write(self, number: int, grain: GrainView, out: Tensor) -> None:
        import torch

        torch.sub(grain.inputs[self.positions[number]], grain.inputs[self.base], out=out)

    def operands(self, number: int, grain: GrainView, take: Callable[[], Tensor]) -> Operands:
        return operand(grain, self.positions[number]), operand(grain, self.base)


def write_operands(operands: Operands, out: Tensor, take: Callable[[], Tensor]) -> None:
    """Write a vector to ``out`` (float32), given its operands; ``take`` gives scratch for it."""
    vector, minus, *factors = operands
    out.view(-1).copy_(vector.reshape(-1))
    if minus is not None:
        wide = take().view(-1)
        wide.copy_(minus.reshape(-1))
        out.view(-1).sub_(wide)
    for each in factors:
        if each is not None:
            out.view(each.numel(), -1).mul_(each.view(-1, 1))


def operand(grain: GrainView, position: int) -> Tensor:
    """An input as it is stored, where compiled loops can read that, or else widened."""
    stored = grain.stored(position)
    return grain.inputs[position] if stored is None else stored


def vectors_of(positions: tuple[int, ...], base: int | None) -> Source:
    """The inputs at ``positions``, or their differences from a base."""
    return Inputs(positions) if base is None else Differences(base, positions)
