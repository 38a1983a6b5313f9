"""Hypothesis strategies: shapes, dtypes, tensors with ties and zeros, parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

shapes = st.one_of(
    st.just(()),
    st.tuples(st.integers(1, 300)),
    st.tuples(st.integers(1, 40), st.integers(1, 17)),
    st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 9)),
)
dtypes = st.sampled_from(DTYPES)
weights = st.one_of(st.sampled_from((0.0, 1.0, 0.5, -0.5)), st.floats(-2, 2, width=32))
positive = st.floats(0.015625, 2, width=32)
densities = st.one_of(st.sampled_from((0.0, 0.5, 1.0)), st.floats(0, 1.25, width=32))

shares = st.one_of(st.sampled_from((0.0, 0.01, 0.5, 1.0)), st.floats(0, 1))


@dataclass(frozen=True)
class Family:
    """A base and its fine-tunes, of one shape and dtype each."""

    base: torch.Tensor
    others: tuple[torch.Tensor, ...]

    @property
    def all(self) -> tuple[torch.Tensor, ...]:
        return (self.base, *self.others)


def family(
    shape: Sequence[int], count: int, seed: int, dtype: torch.dtype, kind: str = "plain"
) -> Family:
    """``kind``: plain; coarse (few distinct differences, many ties); sparse; equal (to the base);
    wide (magnitudes over many powers of two)."""
    source = torch.Generator().manual_seed(seed)

    def normal() -> torch.Tensor:
        return torch.randn(tuple(shape), generator=source, dtype=torch.float64)

    base = normal()
    others = []
    for _ in range(count):
        step = normal() * 0.1
        if kind == "coarse":
            step = (step * 20).round() / 8
        elif kind == "sparse":
            step = step * (torch.rand(tuple(shape), generator=source) < 0.3)
        elif kind == "equal":
            step = step * 0
        elif kind == "wide":
            step = step * torch.exp2(normal() * 6)
        others.append((step + base.to(dtype).double()).clamp(-1e4, 1e4))
    return Family(base.to(dtype), tuple(other.to(dtype) for other in others))


kinds = st.sampled_from(("plain", "coarse", "sparse", "equal", "wide"))


@st.composite
def families(draw: st.DrawFn, least: int = 1, most: int = 4) -> Family:
    return family(
        draw(shapes),
        draw(st.integers(least, most)),
        draw(st.integers(0, 1 << 30)),
        draw(dtypes),
        draw(kinds),
    )


def some(draw: st.DrawFn, strategy: st.SearchStrategy[float], count: int) -> list[float]:
    return draw(st.lists(strategy, min_size=count, max_size=count))
