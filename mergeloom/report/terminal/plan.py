"""A plan as text: the output, the origin of its layers, and the resources."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mergeloom.planners.outline import Layers, Outline, OutlinePart, OutlineSlice, OutlineSource
from mergeloom.report import plan_records
from mergeloom.report.plan_records import PlanReport
from mergeloom.report.terminal.bars import band
from mergeloom.report.terminal.console import (
    ByWidth,
    columns,
    hanging,
    layers_named,
    layers_text,
    picture_columns,
    plural,
    warnings,
)
from mergeloom.report.terminal.parameters import render_parameters
from mergeloom.report.terminal.vocabulary import render_vocabulary
from mergeloom.report.units import MIB, count, data, duration, memory

_MANY_SLICES = 60
"""Maximum number of listed slices of a part; published stacks have up to about forty."""


def one_line(report: PlanReport) -> str:
    """A plan in one line."""
    output = report.output
    layers = f"{plural(output.layers, 'layer')}, " if output.layers else ""
    return (
        f"{layers}{count(output.parameters)} parameters, "
        f"{_dtypes(output)}, {data(output.bytes)} by {report.method}; "
        f"reads {data(report.io.read_bytes)}, "
        f"{memory(report.memory.peak_bytes)} of memory at most, "
        f"about {duration(report.time.seconds)}"
    )


def render_plan(report: PlanReport) -> RenderableType:
    """The summary of a plan."""
    parts: list[RenderableType] = [_headline(report), Text()]
    for number, stage in enumerate(report.stages, 1):
        if len(report.stages) > 1:
            parts.append(_stage_title(stage, number, len(report.stages)))
        for part in stage.parts:
            parts += [_part(part, stage), Text()]
        if stage.notes:
            parts += [*(Text(note, style="dim") for note in stage.notes), Text()]
    if report.parameters:
        parts += [render_parameters(report.parameters), Text()]
    parts.append(_figures(report))
    if report.vocabulary is not None:
        parts += [Text(), render_vocabulary(report.vocabulary)]
    if report.output.config_changes:
        parts += [Text(), Text("config.json", style="bold")]
        parts.append(hanging("", map(Text, report.output.config_changes)))
    if report.unused_inputs:
        parts += [Text(), Text("not used", style="bold")]
        parts.append(hanging("", (Text(_unused(item)) for item in report.unused_inputs)))
    if report.output_state is not None:
        refuses = report.output_state.will in ("refuse", "repair")
        style = "yellow" if refuses else ""
        parts += [Text(), Text(report.output_state.message, style=style)]
    if report.warnings:
        parts.append(Text())
        parts.append(warnings(report.warnings))
    return Group(*parts)


def _headline(report: PlanReport) -> Text:
    output = report.output
    text = Text()
    if output.layers:
        text.append(plural(output.layers, "layer"), style="bold").append(", ")
    text.append(f"{count(output.parameters)} parameters", style="bold")
    text.append(f" ({output.parameters:,}), {_dtypes(output)}, {data(output.bytes)}")
    text.append(f" in {plural(len(output.shards), 'shard')}, {plural(output.tensors, 'tensor')}")
    if output.tied:
        text.append(", head tied to the embedding")
    return text


def _dtypes(output: plan_records.OutputReport) -> str:
    return " and ".join(list(output.dtypes)[:3]) or "nothing"


def _stage_title(stage: Outline, number: int, total: int) -> Text:
    name = f" '{stage.name}'" if stage.name is not None else ""
    dtype = f", {stage.dtype}" if stage.dtype is not None else ""
    what = "the output" if number == total else "kept in memory, tensor by tensor"
    return Text.assemble(
        (f"stage {number} of {total}{name}", "bold"), (f": {stage.method}{dtype}, {what}", "dim")
    )


def _part(part: OutlinePart, stage: Outline) -> RenderableType:
    """One line per output slice, with input and output layers."""
    title = "" if part.name == "default" else f"{part.name}: "
    if not part.slices:
        return Text(f"{title}no layers; every tensor by {stage.method}")
    lengths = [stop - start for start, stop in _layers(part)]
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
    lines_: list[RenderableType] = [
        Text(title + how, style="bold"),
        ByWidth(lambda width: Padding(_slices(part, stage, width), (0, 0, 0, 2), expand=False)),
    ]
    if len(part.slices) > _MANY_SLICES:
        lines_.append(Text(f"  and {len(part.slices) - _MANY_SLICES} more slices", style="dim"))
    return Group(*lines_)


def _slices(part: OutlinePart, stage: Outline, width: int) -> RenderableType:
    """One line per slice; for a stack with a chart of its position, if there is room."""
    lengths = _layers(part)
    chart = picture_columns(width) if len(lengths) > 1 else 0
    table = columns("output layers" if lengths else "", *([""] if chart else []), "", "made of")
    for column in table.columns[:-1]:
        column.no_wrap = True
    for each in part.slices[:_MANY_SLICES]:
        lines = [Text(_source(source)) for source in each.sources]
        if each.detail and each.how != "scaled":
            lines.append(Text(each.detail, style="dim"))
        layers = "" if each.layers is None else layers_text(each.layers)
        place = []
        if chart and each.layers is not None:
            place = [Text(band(*each.layers, part.layers, chart), style="cyan")]
        table.add_row(layers, *place, _verb(each, stage), Text("\n").join(lines))
    return table


def _layers(part: OutlinePart) -> list[Layers]:
    return [each.layers for each in part.slices if each.layers is not None]


def _verb(part: OutlineSlice, stage: Outline) -> str:
    if part.how == "copied":
        return "copy of"
    if part.how == "scaled":
        return part.detail
    if part.how == "partly scaled":
        return "scaled copy of"
    return stage.method


def _source(source: OutlineSource) -> str:
    text = source.model
    if source.layers is not None:
        text += f"  {layers_named(source.layers)}"
    return f"{text}  base" if source.base else text


def _figures(report: PlanReport) -> RenderableType:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(report):
        table.add_row(name, value)
    return table


def _rows(report: PlanReport) -> Iterator[tuple[str, str | Text]]:
    if len(report.stages) == 1:
        yield "method", report.method
    if report.draws:
        yield "seed", f"{report.seed} (another one draws other elements)"
    reads = data(report.io.read_bytes)
    if report.io.repeated_bytes:
        reads += f", {data(report.io.repeated_bytes)} of it again because memory is short"
    yield "reads", reads
    if report.io.cloned_bytes:
        clones = f"{data(report.io.cloned_bytes)}: shared with the inputs, not moved"
        if report.io.copied_bytes:
            clones += f"; {data(report.io.copied_bytes)} beside them are copied"
        yield "clones", clones
    writes = data(report.io.write_bytes)
    if report.io.spilled_bytes:
        writes += f", {data(report.io.spilled_bytes)} of it to files that only the run needs"
    if report.disk is not None:
        writes += f"; {data(report.disk.free_bytes)} free on its disk"
        if report.disk.needed_bytes > report.disk.free_bytes:
            lacking = report.disk.needed_bytes - report.disk.free_bytes
            writes += f", {data(lacking)} too little"
    yield "writes", writes
    yield "memory", _memory(report)
    yield "time", _time(report)
    if report.devices:
        yield "computes", Text("\n").join(Text(line) for line in _places(report))
        yield "rates", _rates(report)
    yield "tasks", ", ".join(f"{number:,} {kind}" for kind, number in report.tasks.items())
    yield "fingerprint", report.fingerprint


def _memory(report: PlanReport) -> str:
    found = report.memory
    text = (
        f"{memory(found.peak_bytes)} at most, budget {memory(found.budget_bytes)} "
        f"(the smallest that works: {-(-found.minimum_bytes // MIB):,} MiB), "
        f"{plural(report.workers, 'worker')}"
    )
    if report.compiled:
        text += ", machine code"
    return f"{text}, to be built first" if report.to_compile else text


def _time(report: PlanReport) -> str:
    """The estimated time, and the limiting factor."""
    found, rates = report.time, report.rates
    if found.storage_seconds >= found.compute_seconds:
        known = "measured here" if rates.storage_measured else "assumed: not measured here yet"
        why = f"storage at {data(rates.storage_bytes_per_second)}/s, {known}"
    else:
        known = "measured here" if rates.cpu_measured else "its speed is assumed"
        why = f"storage waits for arithmetic, {known}"
    first = ", and some more once, to build machine code" if report.to_compile else ""
    spread = "" if found.measured else " or more"
    if found.low_seconds is not None and found.high_seconds is not None:
        low, high = duration(found.low_seconds), duration(found.high_seconds)
        why = f"{low} to {high}, judging by earlier estimates; {why}"
    return f"about {duration(found.seconds)}{spread}{first} ({why})"


def _places(report: PlanReport) -> Iterator[str]:
    """The number of merges on each device, with the reason."""
    devices = {device.name: device for device in report.devices}
    for place in report.placement:
        where = place.device
        if where in devices:
            device = devices[where]
            where += f" ({device.title}, {memory(device.memory_bytes)} at most)"
        yield f"{plural(place.merges, 'merge')} on {where}: {place.reason}"


def _rates(report: PlanReport) -> str:
    """The rates used for placement; processors in units of the reference core."""
    rates = report.rates
    found = [(f"storage {data(rates.storage_bytes_per_second)}/s", rates.storage_measured)]
    found.append((f"cpu {rates.cpu_speed:.3g} x", rates.cpu_measured))
    models: dict[str, plan_records.DeviceReport] = {}
    for device in report.devices:
        models.setdefault(device.title, device)
    for device in models.values():
        found.append((f"{device.name} {device.speed:.3g} x", device.speed_measured))
        found.append((f"its bus {data(device.bus_bytes_per_second)}/s", device.bus_measured))
    groups = []
    for title, wanted in (("measured", True), ("assumed", False)):
        texts = [text for text, measured in found if measured is wanted]
        groups += [f"{title}: {', '.join(texts)}"] if texts else []
    return "; ".join(groups)


def _unused(item: plan_records.UnusedInput) -> str:
    what = f"{layers_named(*item.layers)} " if item.layers else ""
    names = (
        ""
        if item.layers
        else f": {', '.join(item.tensors[:3])}{' ...' if item.tensors[3:] else ''}"
    )
    tensors = f"{plural(len(item.tensors), 'tensor')}, {data(item.bytes)}"
    return f"{item.model}  {what}({tensors}): {item.reason}{names}"
