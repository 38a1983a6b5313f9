"""A graph in which every method has its turn, for tests of what computes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mergeloom.engine.base.dtypes import BF16, F16, F32, DType
from mergeloom.engine.graph.graph import Graph, Merge
from tests.engine.support import GraphMaker
from tests.methods.test_devices import VARIANTS, kernel_of

SHAPES = {"rows": (900, 600), "wide": (27, 21000), "vector": (530_000,)}
"""Each is larger than a grain."""


def every_method(
    directory: Path, written: Sequence[DType], shapes: Sequence[str] = tuple(SHAPES)
) -> Graph:
    """A merge by every variant of every method, for every shape, to the dtypes in turn. The inputs
    are made in ``directory``; those of the first shapes do not depend on the others."""
    maker = GraphMaker(directory)
    outputs: dict[str, tuple[Merge, DType]] = {}
    for label in shapes:
        shape = SHAPES[label]
        loads = [maker.loads(dtype, [shape], gap=2)[0] for dtype in (BF16, BF16, F16, F32)]
        for number, (name, settings) in enumerate(VARIANTS):
            kernel, count = kernel_of(name, settings, shape)
            merge = maker.builder.merge(loads[:count], kernel, name)
            outputs[f"{name}.{number}.{label}"] = merge, written[number % len(written)]
    return maker.graph(outputs)
