"""Plans, explanations and results as text for people."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mergeloom.check import Checked
from mergeloom.engine.hardware.accelerators import Accelerator
from mergeloom.engine.job import Outcome
from mergeloom.engine.plan.schedule import Schedule
from mergeloom.methods.declare import REQUIRED, Base, Method, Parameter
from mergeloom.planners.config.parameters import Resolved
from mergeloom.planners.slices.document import TowerPlan
from mergeloom.planners.slices.slices import LayerSource, Slice
from mergeloom.planners.slices.tensor_plan import Contribution, TensorPlan, output_dtype
from mergeloom.planners.slices.unused import Unused
from mergeloom.report.units import count, data, duration, memory
from mergeloom.results import PlannedMerge


def render_plan(planned: PlannedMerge) -> RenderableType:
    """A plan at a glance: what comes out, what each layer is made of, what it takes."""
    plan = planned.plan
    parts: list[RenderableType] = [_headline(planned), Text()]
    for tower in plan.stage.towers:
        parts += [_slices(tower, plan.stage.rules.method), Text()]
    parts.append(_figures(planned))
    if plan.config_changes:
        parts += [Text(), Text("config.json", style="bold")]
        parts += [Text(f"  {change}") for change in plan.config_changes]
    if plan.unused:
        parts += [Text(), Text("not used", style="bold")]
        parts += [Text(f"  {_unused(item)}") for item in plan.unused]
    if plan.warnings:
        parts.append(Text())
        parts += [Text(f"warning: {warning}", style="yellow") for warning in plan.warnings]
    return Group(*parts)


def render_tensor(tensor: TensorPlan, planned: PlannedMerge) -> RenderableType:
    """Where one output tensor comes from, and which entry of the configuration set what."""
    write = next(w for w in planned.plan.graph.writes if w.name == tensor.name)
    dtype = output_dtype(tensor, planned.plan.stage.document)
    shape = "x".join(map(str, write.shape)) or "0-d"
    head = Text.assemble((tensor.name, "bold"), f"  {shape} {dtype.name}, in {write.file.name}")
    if tensor.layer is not None:
        head.append(f", output layer {tensor.layer}")
    parts: list[RenderableType] = [head, Text()]
    if tensor.method is None:
        parts.append(Text(f"copied: {tensor.copied_because}"))
    else:
        parts.append(Text(f"merged by {tensor.method.name}: {tensor.method.formula}"))
    table = Table(box=None, pad_edge=False, show_header=True, header_style="dim")
    for column in ("from", "tensor", "layer", "parameters"):
        table.add_column(column, overflow="fold")
    for item in tensor.contributions:
        table.add_row(
            item.model.name + ("  (base)" if item.is_base and tensor.method else ""),
            item.tensor,
            "" if item.layer is None else str(item.layer),
            _parameters(item),
        )
    parts += [Text(), table]
    if tensor.settings:
        parts.append(Text())
        parts += [Text(f"{name} = {_resolved(found)}") for name, found in tensor.settings.items()]
    return Group(*parts)


def render_methods(methods: Iterable[Method]) -> RenderableType:
    """All methods, one a line."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for method in methods:
        table.add_row(method.name, method.summary)
    return table


def render_method(method: Method) -> RenderableType:
    """One method: idea, formula, what it needs, its parameters."""
    about = Table.grid(padding=(0, 2))
    about.add_column()
    about.add_column()
    about.add_row("formula", "\n".join(re.split(r";  |   (?=\()", method.formula)))
    about.add_row("models", models_needed(method))
    if method.works:
        about.add_row("works", method.works)
    if method.draws:
        about.add_row("draws", "at random; --seed chooses another draw")
    about.add_row("reference", method.reference)
    parts: list[RenderableType] = [
        Text.assemble((method.name, "bold"), f": {method.summary}"),
        Text(),
        about,
    ]
    for title, parameters in (
        ("for each model", method.model_parameters),
        ("for all models together", method.settings),
    ):
        if parameters:
            parts += [Text(), Text(f"parameters {title}", style="bold"), _table(parameters)]
    return Group(*parts)


def models_needed(method: Method) -> str:
    """How many models a method merges, and whether it starts from a base, in words."""
    low, high = method.minimum, method.maximum
    number = f"{low} or more" if high is None else str(low) if low == high else f"{low} to {high}"
    base = {
        Base.NONE: "no base model",
        Base.OPTIONAL: "a base model if given",
        Base.REQUIRED: "beside a base model",
    }[method.base]
    return f"{number}, {base}"


def render_outcome(outcome: Outcome, planned: PlannedMerge, output: str) -> RenderableType:
    """What a finished merge took, beside what was predicted."""
    if outcome.was_finished:
        return Text(f"'{output}' is finished already; nothing to do", style="green")
    made = outcome.schedule
    assert made is not None
    rate = (outcome.read_bytes + outcome.write_bytes) / max(outcome.wall_seconds, 1e-9)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "measured", "predicted"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("read", data(outcome.read_bytes), data(made.read_bytes))
    table.add_row("written", data(outcome.write_bytes), data(made.write_bytes))
    if outcome.device_read_bytes is not None and outcome.device_write_bytes is not None:
        table.add_row("  from storage", data(outcome.device_read_bytes), "")
        table.add_row("  to storage", data(outcome.device_write_bytes), "")
    table.add_row("peak memory", memory(outcome.peak_rss_bytes), f"≤ {memory(made.peak_bytes)}")
    parts: list[RenderableType] = [
        Text(
            f"merged into '{output}' in {duration(outcome.wall_seconds)} ({data(rate)}/s)",
            style="green",
        ),
        table,
    ]
    if outcome.resumed:
        parts.append(Text(f"{outcome.resumed} tensors were there already"))
    parts += [Text(f"warning: {warning}", style="yellow") for warning in outcome.warnings]
    return Group(*parts)


def render_checked(checked: Checked) -> Text:
    """What ``--check`` computed again, and what it could not."""
    text = Text(
        f"checked: {checked.tensors} tensors ({checked.elements:,} elements) computed again in "
        "float64 from the inputs, all equal within rounding",
        style="green",
    )
    for reason, number in checked.passed_over.items():
        text.append(f"; {number} drawn and not computed: {reason}", style="yellow")
    return text


def error_console() -> Console:
    """The console for messages to people; never stdout, which may be for data."""
    return console(stderr=True)


def console(stderr: bool = False) -> Console:
    """A console as wide as the terminal; wide enough for anything where there is none."""
    found = Console(stderr=stderr, highlight=False, markup=False)
    return (
        found
        if found.is_terminal
        else Console(stderr=stderr, highlight=False, markup=False, width=240)
    )


def _headline(planned: PlannedMerge) -> Text:
    plan = planned.plan
    size = sum(file.size for file in plan.graph.files)
    dtypes = dict.fromkeys(write.dtype.name for write in plan.graph.writes)
    shards = len(plan.graph.files)
    text = Text.assemble((f"{plan.layers} layers", "bold"), ", ")
    text.append(f"{count(plan.parameters)} parameters", style="bold")
    text.append(f" ({plan.parameters:,}), {' and '.join(list(dtypes)[:3])}, {data(size)}")
    text.append(f" in {shards} shard{'s' if shards > 1 else ''}, {len(plan.graph.writes)} tensors")
    return text


def _slices(tower: TowerPlan, method: Method) -> RenderableType:
    """One line for each output slice: these input layers make those output layers."""
    title = "" if tower.tower.name == "default" else f"{tower.tower.name}: "
    lengths = [part.length for part in tower.slices]
    if not tower.tower.layers:
        return Text(f"{title}no layers; every tensor by {method.name}")
    if len(lengths) > 1:
        total = f"{' + '.join(map(str, lengths))} = {sum(lengths)}"
        how = f"{total} layers: {len(lengths)} slices, stacked one after the other"
    else:
        number = len(tower.slices[0].sources)
        how = f"{lengths[0]} layers: one slice"
        if number > 1:
            how += f", in which {number} sources are merged with each other layer by layer"
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("output layers", no_wrap=True)
    table.add_column("")
    table.add_column("made of", overflow="fold")
    for part in tower.slices:
        one = len(part.sources) == 1
        verb = "copy of" if one and method.name == "passthrough" else method.name
        made_of = Text("\n").join(
            Text(_source(source, part, position)) for position, source in enumerate(part.sources)
        )
        table.add_row(_layers(part.first, part.first + part.length), verb, made_of)
    first, last = tower.slices[0], tower.slices[-1]
    lines: list[RenderableType] = [
        Text(title + how, style="bold"),
        Padding(table, (0, 0, 0, 2), expand=False),
    ]
    if len(tower.slices) > 1 and (tower.tower.before or tower.tower.after):
        before = " and ".join(dict.fromkeys(source.model.name for source in first.sources))
        after = " and ".join(dict.fromkeys(source.model.name for source in last.sources))
        outside = f"  weights before the layers from {before}, after them from {after}"
        lines.append(Text(outside, style="dim"))
    return Group(*lines)


def _source(source: LayerSource, part: Slice, position: int) -> str:
    shift = source.start - part.first
    text = f"{source.model.name}  layers {_layers(source.start, source.stop)}"
    if shift:
        text += f"  (output layer i from its layer i{shift:+d})"
    if position == part.base:
        text += "  base"
    return text


def _layers(start: int, stop: int) -> str:
    return str(start) if stop - start == 1 else f"{start}-{stop - 1}"


def _figures(planned: PlannedMerge) -> RenderableType:
    made = planned.schedule
    tasks = planned.plan.graph.counts()
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("method", planned.plan.stage.rules.method.name)
    if planned.plan.stage.rules.method.draws:
        table.add_row("seed", f"{planned.plan.options.seed}, which the random choice hangs on")
    table.add_row("tasks", ", ".join(f"{number} {kind}" for kind, number in tasks.items()))
    reads = data(made.read_bytes)
    if made.repeated_bytes:
        reads += f", {data(made.repeated_bytes)} of it again because memory is short"
    table.add_row("reads", reads)
    table.add_row("writes", data(made.write_bytes))
    table.add_row(
        "memory",
        f"{memory(made.peak_bytes)} at most, budget {memory(planned.budget_bytes)} "
        f"(the smallest that works: {math.ceil(made.minimum_bytes / (1 << 20))} MiB), "
        f"{made.workers} worker{'s' if made.workers > 1 else ''}"
        + (", compiled loops" if made.compiled else "")
        + (", to be built first" if made.missing else ""),
    )
    if made.devices:
        table.add_row("computes", Text("\n").join(Text(line) for line in _places(made)))
        table.add_row("rates", _rates(made))
    table.add_row("fingerprint", planned.plan.fingerprint)
    return table


def _places(made: Schedule) -> list[str]:
    """Where how many merges compute, and why."""
    lines = []
    for seat, number in made.seats.items():
        place = made.place_name(seat)
        if seat.device is not None:
            device = made.devices[seat.device]
            place += f" ({device.title}, {memory(device.memory_bytes)} at most)"
        lines.append(f"{number} merge{'s' if number > 1 else ''} on {place}: {seat.why.value}")
    return lines


def _rates(made: Schedule) -> str:
    """The rates by which places were decided; processors in cores of what kernels' cost is for."""
    rates = made.rates
    found = [(f"storage {data(rates.storage)}/s", rates.knows_storage)]
    found.append((f"cpu {1 / rates.cpu(made.compiled):.3g} x", rates.knows_cpu))
    models: dict[str, Accelerator] = {}
    for device in made.devices:
        models.setdefault(device.title, device)
    for device in models.values():
        there = rates.of(device)
        found.append((f"{there.name} {there.speed:.3g} x", rates.knows_speed(device)))
        found.append((f"its bus {data(there.bus_rate)}/s", rates.knows_bus(device)))
    groups = []
    for title, wanted in (("measured", True), ("assumed", False)):
        texts = [text for text, measured in found if measured is wanted]
        groups += [f"{title}: {', '.join(texts)}"] if texts else []
    return "; ".join(groups)


def _unused(item: Unused) -> str:
    layers = ", ".join(_layers(start, stop) for start, stop in item.layers)
    what = f"layers {layers} " if layers else ""
    names = "" if layers else f": {', '.join(item.names[:3])}{' ...' if item.names[3:] else ''}"
    number = len(item.names)
    tensors = f"{number} tensor{'s' if number > 1 else ''}, {data(item.nbytes)}"
    return f"{item.model}  {what}({tensors}): {item.reason}{names}"


def _parameters(item: Contribution) -> str:
    return "\n".join(f"{name} = {_resolved(found)}" for name, found in item.parameters.items())


def _resolved(found: Resolved) -> str:
    value = f"{found.value:.6g}" if isinstance(found.value, float) else str(found.value)
    if found.entry is None:
        return f"{value}  (default)"
    why = f"{found.level}, {found.entry.place}"
    if found.entry.filter is not None:
        why += f", filter '{found.entry.filter}'"
    if found.t is not None:
        gradient = ", ".join(f"{number:g}" for number in found.entry.value)
        why += f", gradient [{gradient}] at {found.t:.3g}"
    return f"{value}  ({why})"


def _table(parameters: Iterable[Parameter]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("name", "default", "range", "meaning"):
        table.add_column(column)
    for parameter in parameters:
        default = "required" if parameter.default is REQUIRED else str(parameter.default).lower()
        table.add_row(parameter.name, default, parameter.range_text(), parameter.help)
    return Padding(table, (0, 0, 0, 2), expand=False)
