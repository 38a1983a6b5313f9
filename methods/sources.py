"""The vectors that statistics measure and kernels combine: inputs, or what is computed of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.kernel import GrainView
from methods.compiled import Operands

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

    def operands(self, number: int, grain: GrainView, scratch: Tensor) -> Operands:
        """Vector ``number`` as it can be had with the least work, not to be changed."""
        return self.read(number, grain, scratch), None


@dataclass(frozen=True)
class Inputs(Source):
    """The inputs at ``positions`` themselves."""

    positions: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.positions)

    def write(self, number: int, grain: GrainView, out: Tensor) -> None:
        out.copy_(grain.inputs[self.positions[number]])

    def read(self, number: int, grain: GrainView, scratch: Tensor) -> Tensor:
        return grain.inputs[self.positions[number]]

    def operands(self, number: int, grain: GrainView, scratch: Tensor) -> Operands:
        return operand(grain, self.positions[number]), None


@dataclass(frozen=True)
class Differences(Source):
    """Task vectors τᵢ = θᵢ - θ₀ of the inputs at ``positions``, rounded to float32."""

    base: int
    positions: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.positions)

    def write(self, number: int, grain: GrainView, out: Tensor) -> None:
        import torch

        torch.sub(grain.inputs[self.positions[number]], grain.inputs[self.base], out=out)

    def operands(self, number: int, grain: GrainView, scratch: Tensor | None = None) -> Operands:
        return operand(grain, self.positions[number]), operand(grain, self.base)


def operand(grain: GrainView, position: int) -> Tensor:
    """An input as it is stored, where compiled loops can read that, or else widened."""
    import torch

    stored = grain.stored(position)
    if stored is not None and stored.dtype in (torch.bfloat16, torch.float32):
        return stored
    return grain.inputs[position]


def vectors_of(positions: tuple[int, ...], base: int | None) -> Source:
    """The inputs at ``positions``, or their differences from a base."""
    return Inputs(positions) if base is None else Differences(base, positions)
