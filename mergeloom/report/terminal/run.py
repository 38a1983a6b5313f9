"""A finished merge as text: measurements and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Group, RenderableType
from rich.text import Text

from mergeloom.report.plan_records import CheckReport, CodingError, MergeReport
from mergeloom.report.records import ExportReport
from mergeloom.report.terminal.console import columns, plural
from mergeloom.report.terminal.plan import render_plan
from mergeloom.report.units import data, duration, memory


def one_line(report: MergeReport) -> str:
    """A finished merge in one line."""
    if report.was_finished:
        return f"'{report.directory}' is finished already; nothing to do"
    return _merged(report)


def render_outcome(report: MergeReport) -> RenderableType:
    """The measurements of a finished merge; warnings are printed separately."""
    if report.was_finished:
        parts: list[RenderableType] = [Text(one_line(report), style="green")]
    else:
        parts = [Text(_merged(report), style="green"), _figures(report)]
        if report.resumed_tensors:
            parts.append(Text(f"{plural(report.resumed_tensors, 'tensor')} were already finished"))
    if report.coding_errors:
        parts.append(_coded(report.coding_errors))
    if report.checked is not None:
        parts.append(_checked(report.checked))
    return Group(*parts)


def render_report(report: MergeReport) -> RenderableType:
    """A past merge: its plan and measurements."""
    planned = replace(report, output_state=None)  # as it was before the merge
    return Group(render_plan(planned), Text(), render_outcome(report))


def render_export(report: ExportReport) -> RenderableType:
    """The result of an export."""
    text = (
        f"exported to '{report.output}' in {duration(report.wall_seconds)}: "
        f"{plural(report.tensors, 'tensor')}, matrices as {report.type}, {data(report.bytes)}; "
        f"peak memory {memory(report.peak_rss_bytes)}"
    )
    parts = [Text(text, style="green")]
    if report.left_out:
        more = f" and {len(report.left_out) - 1} more" if len(report.left_out) > 1 else ""
        parts.append(Text(f"not in the file, which needs none: '{report.left_out[0]}'{more}"))
    return Group(*parts)


def _merged(report: MergeReport) -> str:
    measured = report.measured
    moved = measured.read_bytes + measured.write_bytes + measured.cloned_bytes
    rate = data(moved / max(report.wall_seconds, 1e-9))
    return f"merged into '{report.directory}' in {duration(report.wall_seconds)} ({rate}/s)"


def _figures(report: MergeReport) -> RenderableType:
    measured, predicted = report.measured, report.predicted
    assert predicted is not None, "a run that did something was predicted"
    table = columns("", "measured", "predicted")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("read", data(measured.read_bytes), data(predicted.read_bytes))
    table.add_row("written", data(measured.write_bytes), data(predicted.write_bytes))
    if measured.cloned_bytes:
        table.add_row("cloned", data(measured.cloned_bytes), "")
    if measured.device_read_bytes is not None and measured.device_write_bytes is not None:
        table.add_row("  from storage", data(measured.device_read_bytes), "")
        table.add_row("  to storage", data(measured.device_write_bytes), "")
    most = f"≤ {memory(predicted.peak_bytes)}"
    table.add_row("peak memory", memory(measured.peak_rss_bytes), most)
    return table


_WORST = 3
"""Number of tensors listed with their errors."""


def _coded(errors: Sequence[CodingError]) -> Text:
    """Quantisation errors."""
    worst = ", ".join(f"{each.tensor} {each.error:.2%}" for each in errors[:_WORST])
    middle = errors[len(errors) // 2].error
    return Text(
        f"{plural(len(errors), 'tensor')} rounded to codes, relative error {middle:.2%} in the "
        f"median; the largest: {worst}"
    )


def _checked(checked: CheckReport) -> Text:
    """The result of ``--check``, including skipped tensors."""
    text = Text(
        f"checked: {plural(checked.tensors, 'tensor')} ({checked.elements:,} elements) computed "
        "again in float64 from the inputs, all equal within rounding",
        style="green",
    )
    for reason, number in checked.passed_over.items():
        text.append(f"; {number} drawn and not computed: {reason}", style="yellow")
    return text
