"""The report of ``explain --lines``: the effect of each line of a configuration."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergeloom.planners.config.config import MergeDocument
from mergeloom.planners.config.parameters import ResolvedValue
from mergeloom.planners.outline import layer_ranges
from mergeloom.report.records import LinesReport, LineUse

if TYPE_CHECKING:
    from mergeloom.results import PlannedMerge


@dataclass
class _LineEffect:
    """The tensors, layers and values of a parameter that one line sets."""

    tensors: set[str] = field(default_factory=set)
    layers: set[int] = field(default_factory=set)
    values: list[Any] = field(default_factory=list)


def lines_report(planned: PlannedMerge) -> LinesReport:
    """Every line of a configuration, with the tensors whose parameters it sets."""
    configuration = planned.plan.configuration
    found: dict[tuple[int, str], _LineEffect] = defaultdict(_LineEffect)
    for plans in (*planned.plan.earlier_plans, planned.plan.tensor_plans):
        for tensor in plans():
            own = [tensor.settings, *(item.parameters for item in tensor.contributions)]
            for parameters in own:
                for name, value in parameters.items():
                    _add_value(found, name, value, tensor.name, tensor.layer)
    named = {
        (entry.place.line, name)
        for document in configuration.documents
        if isinstance(document, MergeDocument)
        for block in document.blocks()
        for name, entries in block.entries.items()
        for entry in entries
    }
    uses = [_line_use(line, name, found[line, name]) for line, name in sorted({*found, *named})]
    return LinesReport(
        configuration=None if configuration.path is None else str(configuration.path),
        lines=tuple(configuration.text.splitlines()),
        uses=tuple(use for use in uses if use.line),
    )


def _add_value(
    found: dict[tuple[int, str], _LineEffect],
    name: str,
    value: ResolvedValue,
    tensor: str,
    layer: int | None,
) -> None:
    if value.entry is None:
        return
    use = found[value.entry.place.line, name]
    use.tensors.add(tensor)
    use.values.append(value.value)
    if layer is not None:
        use.layers.add(layer)


def _line_use(line: int, name: str, use: _LineEffect) -> LineUse:
    values = sorted(set(use.values), key=lambda value: (str(type(value)), value))
    return LineUse(
        line=line,
        parameter=name,
        tensors=len(use.tensors),
        layers=layer_ranges(use.layers),
        least=values[0] if values else None,
        most=values[-1] if values else None,
    )
