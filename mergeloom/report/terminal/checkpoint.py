"""A checkpoint as text: at a glance with its layers as templates, or every tensor."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from mergeloom.report.records import InspectReport, StackReport
from mergeloom.report.terminal.console import plain_table, plural, printable, shape_text
from mergeloom.report.units import count_text, data_text


def render_inspect(report: InspectReport, all_tensors: bool) -> RenderableType:
    """A checkpoint at a glance; with ``all_tensors`` each tensor by its name."""
    kinds = ", ".join(f"{data_text(nbytes)} {name}" for name, nbytes in report.dtypes.items())
    head = Text.assemble(
        (f"{count_text(report.parameters)} parameters", "bold"),
        f" ({report.parameters:,}), {kinds}, {plural(len(report.tensors), 'tensor')} in "
        f"{plural(len(report.shards), 'shard')}",
    )
    facts = plain_table("", "")
    facts.columns[0].style = "dim"
    for name, value in _facts(report):
        facts.add_row(name, printable(value))
    parts: list[RenderableType] = [head, facts]
    for stack in report.stacks:
        parts += [Text(), *_stack_lines(stack, report, all_tensors)]
    return Group(*parts)


def _facts(report: InspectReport) -> Iterator[tuple[str, str]]:
    names = ", ".join(report.architectures) or "none named"
    yield "architecture", f"{names}{f' ({report.model_type})' if report.model_type else ''}"
    if report.declared:
        yield "declares", ", ".join(f"{key} {n}" for key, n in report.declared.items())
    if report.tied is not None:
        yield "output head", "tied to the embedding" if report.tied else "separate"
    if report.vocabulary is not None:
        yield "vocabulary", f"{report.vocabulary:,} rows"
    if report.tokenizer is None:
        yield "tokenizer", "none"
    else:
        kind = report.tokenizer.kind or ", ".join(report.tokenizer.files)
        number = report.tokenizer.entries
        yield "tokenizer", kind + (f", {number:,} tokens" if number is not None else "")
    if report.quantisation is not None:
        yield "quantised", report.quantisation


def _stack_lines(
    stack: StackReport, report: InspectReport, all_tensors: bool
) -> Iterator[RenderableType]:
    title = "" if stack.name == "default" else f"{stack.name}: "
    layers = plural(stack.layers, "layer")
    where = f", '{stack.prefix}N'" if stack.layers else ""
    yield Text(f"{title}{layers}{where}", style="bold")
    table = plain_table("", "", "")
    if all_tensors:
        for name in stack.tensors:
            table.add_row(name, shape_text(report.tensors[name].shape), report.tensors[name].dtype)
        yield table
        return
    for name in stack.before:
        table.add_row(name, shape_text(report.tensors[name].shape), report.tensors[name].dtype)
    for each in stack.templates:
        every = "" if each.layers == stack.layers else f"  in {plural(each.layers, 'layer')}"
        name = f"{stack.prefix}N{each.suffix}{every}"
        table.add_row(name, shape_text(each.shape), each.dtype)
    for name in stack.after:
        table.add_row(name, shape_text(report.tensors[name].shape), report.tensors[name].dtype)
    yield table
