"""``mergeloom explain``: one tensor in full, or a table of all that match."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mergeloom.engine.base.errors import ConfigError
from mergeloom.planners.config.parameters import Resolved
from mergeloom.planners.slices.tensor_plan import TensorPlan
from mergeloom.report.documents import explain_document
from mergeloom.report.terminal import render_tensor
from mergeloom.results import PlannedMerge


def select(planned: PlannedMerge, pattern: str | None) -> list[TensorPlan]:
    """The output tensor called ``pattern``, or else all whose names contain it.

    Raises:
        ConfigError: there is none.
    """
    found = list(planned.plan.stage.tensor_plans())
    if pattern is None:
        return found
    exact = [tensor for tensor in found if tensor.name == pattern]
    matching = exact or [tensor for tensor in found if pattern in tensor.name]
    if not matching:
        planned.plan.explain(pattern)  # says what is near
        raise ConfigError(f"the output has no tensor '{pattern}'")
    return matching


def document(found: Sequence[TensorPlan], planned: PlannedMerge) -> dict[str, Any]:
    """One tensor's document, or ``{"tensors": [...]}``."""
    documents = [explain_document(tensor, planned) for tensor in found]
    return documents[0] if len(documents) == 1 else {"tensors": documents}


def render(found: Sequence[TensorPlan], planned: PlannedMerge) -> RenderableType:
    """One tensor in full, several as a table."""
    if len(found) == 1:
        return render_tensor(found[0], planned)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("tensor", "made of", "parameters"):
        table.add_column(column, overflow="fold")
    for tensor in found:
        table.add_row(tensor.name, _sources(tensor), Text(_parameters(tensor)))
    hint = Text("one tensor's full name shows which entry of the configuration set what", "dim")
    return Group(table, hint)


def _sources(tensor: TensorPlan) -> str:
    parts = []
    for item in tensor.contributions:
        layer = "" if item.layer is None else f" {item.layer}"
        parts.append(f"{item.model.name}{layer}")
    return " + ".join(parts) + ("" if tensor.method is not None else "  (copied)")


def _parameters(tensor: TensorPlan) -> str:
    parts = [f"{name} {_value(found)}" for name, found in tensor.settings.items() if found.entry]
    names = dict.fromkeys(name for item in tensor.contributions for name in item.parameters)
    for name in names:
        values = [
            _value(item.parameters[name]) if name in item.parameters else "-"
            for item in tensor.contributions
        ]
        parts.append(f"{name} {'/'.join(values)}")
    return ", ".join(parts)


def _value(found: Resolved) -> str:
    value = f"{found.value:.4g}" if isinstance(found.value, float) else str(found.value)
    pattern = found.entry.filter if found.entry is not None else None
    return f"{value} [{pattern}]" if pattern is not None else value
