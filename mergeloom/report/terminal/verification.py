"""The result of ``verify`` as text."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from mergeloom.report.records import VerifyReport
from mergeloom.report.terminal.console import plural, printable
from mergeloom.report.units import data_text


def render_verify(report: VerifyReport) -> RenderableType:
    """Whether an output is sound; otherwise its faults, one per line."""
    loading = report.loading
    if report.sound:
        tensors = (
            f"{plural(report.tensors, 'tensor')}, {data_text(report.bytes)}, equal their digests"
        )
        if not report.finished:
            return Text(f"'{report.output}' is not finished; what it has is sound: {tensors}")
        sound = Text(f"'{report.output}' is sound: {tensors}", style="green")
        if loading is None:
            return sound
        whole = f"it loads as {loading.class_name}: transformers {loading.transformers} finds all"
        return Group(sound, Text(f"{whole} that the class needs, and nothing else", style="green"))
    faults = (*report.wrong, *(loading.faults if loading else ()))
    lines = [Text(f"{printable(each.what)}: {printable(each.why)}", style="red") for each in faults]
    count = plural(len(faults), "fault")
    loaded = f", loaded as {loading.class_name}" if loading and loading.faults else ""
    lines.append(Text(f"'{report.output}' has {count}{loaded}", style="bold"))
    if report.wrong:
        again = "the same merge command" + (" with --verify" if report.finished else "")
        lines.append(Text(f"{again} recreates what is wrong"))
    return Group(*lines)
