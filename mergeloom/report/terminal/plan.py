"""A plan as text: the output, the origin of its layers, and the resources."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mergeloom.engine.base.units import MIB
from mergeloom.planners.outline import Layers, Outline, OutlinePart, OutlineSlice, OutlineSource
from mergeloom.report import plan_records
from mergeloom.report.plan_records import PlanReport
from mergeloom.report.terminal.bars import range_bar
from mergeloom.report.terminal.console import (
    ByWidth,
    chart_width,
    hanging_lines,
    layers_phrase,
    layers_text,
    plain_table,
    plural,
    warnings,
)
from mergeloom.report.terminal.parameters import render_parameters
from mergeloom.report.terminal.vocabulary import render_vocabulary
from mergeloom.report.units import count_text, data_text, duration_text, memory_text

_MANY_SLICES = 60
"""Maximum number of listed slices of a part; published stacks have up to about forty."""


def one_line(report: PlanReport) -> str:
    """A plan in one line."""
    output = report.output
    layers = f"{plural(output.layers, 'layer')}, " if output.layers else ""
    return (
        f"{layers}{count_text(output.parameters)} parameters, "
        f"{_dtypes_text(output)}, {data_text(output.bytes)} by {report.method}; "
        f"reads {data_text(report.io.read_bytes)}, "
        f"{memory_text(report.memory.peak_bytes)} of memory at most, "
        f"about {duration_text(report.time.seconds)}"
    )


def render_plan(report: PlanReport) -> RenderableType:
    """The summary of a plan."""
    parts: list[RenderableType] = [_headline(report), Text()]
    for number, stage in enumerate(report.stages, 1):
        if len(report.stages) > 1:
            parts.append(_stage_title(stage, number, len(report.stages)))
        for part in stage.parts:
            parts += [_part_lines(part, stage), Text()]
        if stage.notes:
            parts += [*(Text(note, style="dim") for note in stage.notes), Text()]
    if report.parameters:
        parts += [render_parameters(report.parameters), Text()]
    parts.append(_figures_table(report))
    if report.vocabulary is not None:
        parts += [Text(), render_vocabulary(report.vocabulary)]
    if report.output.config_changes:
        parts += [Text(), Text("config.json", style="bold")]
        parts.append(hanging_lines("", map(Text, report.output.config_changes)))
    if report.unused_inputs:
        parts += [Text(), Text("not used", style="bold")]
        parts.append(hanging_lines("", (Text(_unused_text(item)) for item in report.unused_inputs)))
    if report.output_state is not None:
        state = report.output_state
        style = "yellow" if state.will in ("refuse", "repair") else ""
        parts += [Text(), Text(": ".join(filter(None, [state.message, state.remedy])), style=style)]
    if report.warnings:
        parts.append(Text())
        parts.append(warnings(report.warnings))
    return Group(*parts)


def _headline(report: PlanReport) -> Text:
    output = report.output
    text = Text()
    if output.layers:
        text.append(plural(output.layers, "layer"), style="bold").append(", ")
    text.append(f"{count_text(output.parameters)} parameters", style="bold")
    text.append(f" ({output.parameters:,}), {_dtypes_text(output)}, {data_text(output.bytes)}")
    text.append(f" in {plural(len(output.shards), 'shard')}, {plural(output.tensors, 'tensor')}")
    if output.tied:
        text.append(", head tied to the embedding")
    return text


def _dtypes_text(output: plan_records.OutputReport) -> str:
    return " and ".join(list(output.dtypes)[:3]) or "nothing"


def _stage_title(stage: Outline, number: int, total: int) -> Text:
    name = f" '{stage.name}'" if stage.name is not None else ""
    dtype = f", {stage.dtype}" if stage.dtype is not None else ""
    what = "the output" if number == total else "kept in memory, tensor by tensor"
    return Text.assemble(
        (f"stage {number} of {total}{name}", "bold"), (f": {stage.method}{dtype}, {what}", "dim")
    )


def _part_lines(part: OutlinePart, stage: Outline) -> RenderableType:
    """The title of a part, and one line per slice with its input and output layers."""
    title = "" if part.name == "default" else f"{part.name}: "
    if not part.slices:
        return Text(f"{title}no layers; every tensor by {stage.method}")
    lengths = [stop - start for start, stop in _layer_ranges(part)]
    if not lengths:
        how = f"every tensor by {stage.method}"
    elif len(lengths) > 1:
        shown = " + ".join(map(str, lengths)) if len(lengths) <= 12 else f"{lengths[0]} + ..."
        how = f"{shown} = {sum(lengths)} layers: {len(lengths)} slices, stacked one after the other"
    else:
        number = len(part.slices[0].sources)
        how = f"{plural(lengths[0], 'layer')}: one slice"
        if number > 1:
            how += f", in which {number} sources are merged with each other layer by layer"
    lines: list[RenderableType] = [
        Text(title + how, style="bold"),
        ByWidth(
            lambda width: Padding(_slice_table(part, stage, width), (0, 0, 0, 2), expand=False)
        ),
    ]
    if len(part.slices) > _MANY_SLICES:
        lines.append(Text(f"  and {len(part.slices) - _MANY_SLICES} more slices", style="dim"))
    return Group(*lines)


def _slice_table(part: OutlinePart, stage: Outline, width: int) -> RenderableType:
    """One line per slice; in a stack of slices, with a chart of its position if there is room."""
    lengths = _layer_ranges(part)
    chart = chart_width(width) if len(lengths) > 1 else 0
    table = plain_table("output layers" if lengths else "", *([""] if chart else []), "", "made of")
    for column in table.columns[:-1]:
        column.no_wrap = True
    for each in part.slices[:_MANY_SLICES]:
        lines = [Text(_source_text(source)) for source in each.sources]
        if each.detail and each.how != "scaled":
            lines.append(Text(each.detail, style="dim"))
        layers = "" if each.layers is None else layers_text(each.layers)
        place = []
        if chart and each.layers is not None:
            place = [Text(range_bar(*each.layers, part.layers, chart), style="cyan")]
        table.add_row(layers, *place, _action(each, stage), Text("\n").join(lines))
    return table


def _layer_ranges(part: OutlinePart) -> list[Layers]:
    return [each.layers for each in part.slices if each.layers is not None]


def _action(part: OutlineSlice, stage: Outline) -> str:
    if part.how == "copied":
        return "copy of"
    if part.how == "scaled":
        return part.detail
    if part.how == "partly scaled":
        return "scaled copy of"
    return stage.method


def _source_text(source: OutlineSource) -> str:
    text = source.model
    if source.layers is not None:
        text += f"  {layers_phrase(source.layers)}"
    return f"{text}  base" if source.base else text


def _figures_table(report: PlanReport) -> RenderableType:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _figure_rows(report):
        table.add_row(name, value)
    return table


def _figure_rows(report: PlanReport) -> Iterator[tuple[str, str | Text]]:
    if len(report.stages) == 1:
        yield "method", report.method
    if report.draws:
        yield "seed", f"{report.seed} (another one draws other elements)"
    reads = data_text(report.io.read_bytes)
    if report.io.repeated_bytes:
        reads += f", {data_text(report.io.repeated_bytes)} of it again because memory is short"
    yield "reads", reads
    if report.io.cloned_bytes:
        clones = f"{data_text(report.io.cloned_bytes)}: shared with the inputs, not moved"
        if report.io.copied_bytes:
            clones += f"; {data_text(report.io.copied_bytes)} beside them are copied"
        yield "clones", clones
    writes = data_text(report.io.write_bytes)
    if report.io.spilled_bytes:
        writes += f", {data_text(report.io.spilled_bytes)} of it to files that only the run needs"
    if report.disk is not None:
        writes += f"; {data_text(report.disk.free_bytes)} free on its disk"
        if report.disk.needed_bytes > report.disk.free_bytes:
            lacking = report.disk.needed_bytes - report.disk.free_bytes
            writes += f", {data_text(lacking)} too little"
    yield "writes", writes
    yield "memory", _memory_figures(report)
    yield "time", _time_figures(report)
    if report.devices:
        yield "computes", Text("\n").join(Text(line) for line in _placement_lines(report))
    yield "tasks", ", ".join(f"{number:,} {kind}" for kind, number in report.tasks.items())
    yield "fingerprint", report.fingerprint


def _memory_figures(report: PlanReport) -> str:
    found = report.memory
    text = (
        f"{memory_text(found.peak_bytes)} at most, budget {memory_text(found.budget_bytes)} "
        f"(the smallest that works: {-(-found.minimum_bytes // MIB):,} MiB), "
        f"{plural(report.workers, 'worker')}"
    )
    if report.compiled:
        text += ", machine code"
    return f"{text}, to be built first" if report.to_compile else text


def _time_figures(report: PlanReport) -> str:
    """The estimated time, the limiting factor, and what that is based on."""
    found = report.time
    known = found.low_seconds is not None and found.high_seconds is not None
    if found.storage_seconds >= found.compute_seconds:
        why = (
            "storage" if known else f"storage, assumed at {data_text(found.assumed_storage_rate)}/s"
        )
    else:
        why = "arithmetic" if known else "arithmetic, its speed is assumed"
    why = f"limited by {why}"
    if found.low_seconds is not None and found.high_seconds is not None:
        low, high = duration_text(found.low_seconds), duration_text(found.high_seconds)
        why = f"{low} to {high}, judging by earlier merges here; {why}"
    first = ", and some more once, to build machine code" if report.to_compile else ""
    return f"about {duration_text(found.seconds)}{'' if known else ' or more'}{first} ({why})"


def _placement_lines(report: PlanReport) -> Iterator[str]:
    """The number of merges on each device, and the reason."""
    devices = {device.name: device for device in report.devices}
    for place in report.placement:
        where = place.device
        if where in devices:
            device = devices[where]
            where += f" ({device.title}, {memory_text(device.memory_bytes)} at most)"
        yield f"{plural(place.merges, 'merge')} on {where}: {place.reason}"


def _unused_text(item: plan_records.UnusedInput) -> str:
    what = f"{layers_phrase(*item.layers)} " if item.layers else ""
    names = (
        ""
        if item.layers
        else f": {', '.join(item.tensors[:3])}{' ...' if item.tensors[3:] else ''}"
    )
    tensors = f"{plural(len(item.tensors), 'tensor')}, {data_text(item.bytes)}"
    return f"{item.model}  {what}({tensors}): {item.reason}{names}"
