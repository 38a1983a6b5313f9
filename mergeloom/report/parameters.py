"""The parameters that a configuration sets for the layers of the output.

They are read from its entries, without looking at tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mergeloom.planners.config.config import Configuration, MergeDocument, Module
from mergeloom.planners.config.parameters import (
    ParameterEntry,
    Parameters,
    gradient_value,
    is_number,
)
from mergeloom.planners.outline import Layers, Outline, OutlinePart
from mergeloom.report.plan_records import ParameterLine


def parameter_lines(configuration: Configuration, outline: Outline) -> tuple[ParameterLine, ...]:
    """The parameters that the output's document sets; `explain` shows which tensors get them."""
    document = configuration.documents[-1]
    if not isinstance(document, MergeDocument):
        return ()
    found: list[ParameterLine] = []
    for name, module in document.modules.items():
        parts = [part for part in outline.parts if name in (None, part.name)][:1]
        for part in parts:
            spans = [each.layers for each in part.slices if each.layers is not None]
            if len(spans) == len(module.slices):
                found += _module_lines(module, part, spans, document.parameters)
    return tuple(dict.fromkeys(found))


def _module_lines(
    module: Module, part: OutlinePart, spans: Sequence[Layers], document_parameters: Parameters
) -> Iterator[ParameterLine]:
    for block in (document_parameters, module.parameters):
        yield from _block_lines(block, None, spans)
    for entry, span in zip(module.slices, spans, strict=True):
        yield from _block_lines(entry.parameters, None, [span])
        for source in entry.sources:
            yield from _block_lines(source.parameters, str(source.model), [span])


def _block_lines(
    block: Parameters, model: str | None, spans: Sequence[Layers]
) -> Iterator[ParameterLine]:
    for name, entries in block.entries.items():
        for entry in entries:
            yield ParameterLine(
                parameter=name,
                model=model,
                filter=entry.filter,
                place=entry.place,
                layers=(spans[0][0], spans[-1][1]),
                values=tuple(_values(entry, spans)),
            )


def _values(entry: ParameterEntry, spans: Sequence[Layers]) -> Iterator[Any]:
    """One value for a scalar, one per layer for a gradient."""
    if not isinstance(entry.value, tuple):
        yield entry.value
        return
    for start, stop in spans:
        for step in range(stop - start):
            position = step / (stop - start - 1) if stop - start > 1 else 1.0
            if all(is_number(value) for value in entry.value):
                yield gradient_value(entry.value, position)
            else:
                yield entry.value[int(position * (len(entry.value) - 1))]
