"""The result of ``verify`` as text."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from mergeloom.report.records import VerifyReport
from mergeloom.report.terminal.console import plural, shown
from mergeloom.report.units import data


def render_verify(report: VerifyReport) -> RenderableType:
    """Whether an output is sound; else what is wrong, one thing a line."""
    if report.sound:
        tensors = f"{plural(report.tensors, 'tensor')}, {data(report.bytes)}, equal their digests"
        if not report.finished:
            return Text(f"'{report.output}' is not finished; what it has is sound: {tensors}")
        return Text(f"'{report.output}' is sound: {tensors}", style="green")
    lines = [Text(f"{shown(each.what)}: {shown(each.why)}", style="red") for each in report.wrong]
    faults = plural(len(report.wrong), "fault")
    return Group(*lines, Text(f"'{report.output}' has {faults}", style="bold"))
