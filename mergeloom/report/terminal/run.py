"""A finished merge as text: measurements and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Group, RenderableType
from rich.text import Text

from mergeloom.report.plan_records import CheckReport, CodingError, MergeReport
from mergeloom.report.records import ExportReport
from mergeloom.report.terminal.console import plain_table, plural
from mergeloom.report.terminal.plan import render_plan
from mergeloom.report.units import data_text, duration_text, memory_text


def one_line(report: MergeReport) -> str:
    """A finished merge in one line."""
    if report.was_finished:
        return f"'{report.directory}' is finished already; nothing to do"
    return _headline(report)


def render_outcome(report: MergeReport) -> RenderableType:
    """The measurements of a finished merge; warnings are printed separately."""
    if report.was_finished:
        parts: list[RenderableType] = [Text(one_line(report), style="green")]
    else:
        parts = [Text(_headline(report), style="green"), _figures_table(report)]
        if report.resumed_tensors:
            parts.append(Text(f"already finished: {plural(report.resumed_tensors, 'tensor')}"))
    if report.coding_errors:
        parts.append(_coding_errors_text(report.coding_errors))
    if report.checked is not None:
        parts.append(_check_text(report.checked))
    return Group(*parts)


def render_report(report: MergeReport) -> RenderableType:
    """A past merge: its plan and measurements."""
    planned = replace(report, output_state=None)  # as it was before the merge
    return Group(render_plan(planned), Text(), render_outcome(report))


def render_export(report: ExportReport) -> RenderableType:
    """The result of an export."""
    text = (
        f"exported to '{report.output}' in {duration_text(report.wall_seconds)}: "
        f"{plural(report.tensors, 'tensor')}, matrices as {report.type}, "
        f"{data_text(report.bytes)}; peak memory {memory_text(report.peak_rss_bytes)}"
    )
    parts = [Text(text, style="green")]
    if report.left_out:
        more = f" and {len(report.left_out) - 1} more" if len(report.left_out) > 1 else ""
        parts.append(
            Text(f"not written, because the file does not need it: '{report.left_out[0]}'{more}")
        )
    return Group(*parts)


def _headline(report: MergeReport) -> str:
    measured = report.measured
    moved = measured.read_bytes + measured.write_bytes + measured.cloned_bytes
    rate = data_text(moved / max(report.wall_seconds, 1e-9))
    return f"merged into '{report.directory}' in {duration_text(report.wall_seconds)} ({rate}/s)"


def _figures_table(report: MergeReport) -> RenderableType:
    measured, predicted = report.measured, report.predicted
    assert predicted is not None, "a run that did something was predicted"
    table = plain_table("", "measured", "predicted")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("read", data_text(measured.read_bytes), data_text(predicted.read_bytes))
    table.add_row("written", data_text(measured.write_bytes), data_text(predicted.write_bytes))
    if measured.cloned_bytes:
        table.add_row("cloned", data_text(measured.cloned_bytes), "")
    if measured.device_read_bytes is not None and measured.device_write_bytes is not None:
        table.add_row("  from storage", data_text(measured.device_read_bytes), "")
        table.add_row("  to storage", data_text(measured.device_write_bytes), "")
    most = f"≤ {memory_text(predicted.peak_bytes)}"
    table.add_row("peak memory", memory_text(measured.peak_rss_bytes), most)
    return table


_MAX_ERRORS = 3
"""Number of tensors listed with their errors."""


def _coding_errors_text(errors: Sequence[CodingError]) -> Text:
    """Quantisation errors."""
    worst = ", ".join(f"{each.tensor} {each.error:.2%}" for each in errors[:_MAX_ERRORS])
    middle = errors[len(errors) // 2].error
    return Text(
        f"{plural(len(errors), 'tensor')} rounded to codes, relative error {middle:.2%} in the "
        f"median; the largest: {worst}"
    )


def _check_text(checked: CheckReport) -> Text:
    """The result of ``--check``, including skipped tensors."""
    if checked.wrong is not None:
        return Text(f"check failed: {checked.wrong}: do not use this output", style="red")
    text = Text(
        f"checked: {plural(checked.tensors, 'tensor')} ({checked.elements:,} elements) computed "
        "again in float64 from the inputs, all equal within rounding",
        style="green",
    )
    for reason, number in checked.passed_over.items():
        text.append(f"; {number} drawn and not computed: {reason}", style="yellow")
    return text
