"""Explanations as text: one tensor in full, or a table of several."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from mergeloom.report.records import ExplainReport, ParameterValue, TensorReport
from mergeloom.report.terminal.console import ByWidth, plain_table, shape_text
from mergeloom.report.terminal.vocabulary import render_token

_MIN_TABLE_WIDTH = 100
"""Minimum width of a table of inputs."""


def render_explain(report: ExplainReport) -> RenderableType:
    """One tensor in full, several as a table; or a token."""
    if report.token is not None:
        return render_token(report.token)
    if len(report.tensors) == 1:
        return _tensor_details(report.tensors[0])
    table = plain_table("tensor", "made of", "parameters")
    for tensor in report.tensors:
        table.add_row(tensor.tensor, _sources_text(tensor), Text(_parameters_text(tensor)))
    hint = Text("give one full name to see which entry of the configuration sets what", "dim")
    return Group(table, hint)


def _tensor_details(tensor: TensorReport) -> RenderableType:
    """The origin of one output tensor, with the configuration entries that set its parameters."""
    about = f"  {shape_text(tensor.shape)} {tensor.dtype}, in {tensor.file}"
    head = Text.assemble((tensor.tensor, "bold"), about)
    if tensor.layer is not None:
        head.append(f", output layer {tensor.layer}")
    parts: list[RenderableType] = [head, Text()]
    if tensor.copied_because is not None:
        parts.append(Text(f"copied: {tensor.copied_because}"))
    else:
        parts.append(Text(f"merged by {tensor.method}: {tensor.formula}"))
    parts += [Text(), ByWidth(lambda width: _inputs_text(tensor, width))]
    if tensor.parameters:
        parts.append(Text())
        parts += [
            Text(f"{name} = {_value_and_origin(value)}")
            for name, value in tensor.parameters.items()
        ]
    return Group(*parts)


def _inputs_text(tensor: TensorReport, width: int) -> RenderableType:
    """The inputs of a tensor: a table or, in a narrow terminal, one block each."""
    merged = tensor.copied_because is None
    rows = []
    for item in tensor.inputs:
        base = item.base and merged
        values = [
            f"{name} = {_value_and_origin(value)}"
            for name, value in item.parameters.items()
            if value.place is not None or not base  # defaults do not apply to the base
        ]
        rows.append((f"{item.model}{'  (base)' if base else ''}", item, values))
    if width >= _MIN_TABLE_WIDTH:
        table = plain_table("from", "tensor", "layer", "parameters")
        for model, item, values in rows:
            layer = "" if item.layer is None else str(item.layer)
            table.add_row(model, item.tensor, layer, "\n".join(values))
        return table
    blocks: list[RenderableType] = []
    for model, item, values in rows:
        layer = "" if item.layer is None else f", layer {item.layer}"
        own = "" if item.tensor == tensor.tensor else f": {item.tensor}"
        blocks.append(Text(f"from {model}{layer}{own}"))
        blocks += [Padding(Text(value), (0, 0, 0, 2)) for value in values]
    return Group(*blocks)


def _value_and_origin(found: ParameterValue) -> str:
    value = f"{found.value:.6g}" if isinstance(found.value, float) else str(found.value)
    if found.place is None:
        return f"{value}  (default)"
    line = f":{found.place.line}" if found.place.line else ""
    why = f"{found.level}, {found.place.file}{line}"
    if found.filter is not None:
        why += f", filter '{found.filter}'"
    if found.gradient is not None and found.t is not None:
        gradient = ", ".join(
            f"{v:g}" if isinstance(v, (int, float)) else str(v) for v in found.gradient
        )
        why += f", gradient [{gradient}] at {found.t:.3g}"
    return f"{value}  ({why})"


def _sources_text(tensor: TensorReport) -> str:
    parts = []
    for item in tensor.inputs:
        layer = "" if item.layer is None else f" {item.layer}"
        parts.append(f"{item.model}{layer}")
    return " + ".join(parts) + ("" if tensor.copied_because is None else "  (copied)")


def _parameters_text(tensor: TensorReport) -> str:
    parts = [
        f"{name} {_value_and_filter(value)}"
        for name, value in _without_defaults(tensor.parameters).items()
    ]
    names = dict.fromkeys(name for item in tensor.inputs for name in item.parameters)
    for name in names:
        values = [
            _value_and_filter(item.parameters[name]) if name in item.parameters else "-"
            for item in tensor.inputs
        ]
        parts.append(f"{name} {'/'.join(values)}")
    return ", ".join(parts)


def _without_defaults(parameters: Mapping[str, ParameterValue]) -> Mapping[str, ParameterValue]:
    return {name: value for name, value in parameters.items() if value.place is not None}


def _value_and_filter(found: ParameterValue) -> str:
    value = f"{found.value:.4g}" if isinstance(found.value, float) else str(found.value)
    return f"{value} [{found.filter}]" if found.filter is not None else value
