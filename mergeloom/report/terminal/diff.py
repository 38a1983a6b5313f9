"""How two models differ, as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mergeloom.report.diff_records import ComparedModel, DiffReport, GroupReport, ValuesReport
from mergeloom.report.terminal.bars import bar
from mergeloom.report.terminal.console import ByWidth, plain_table, plural, printable, shape_text
from mergeloom.report.units import count_text, data_text

_MAX_NAMES = 8
_MAX_KINDS = 24
_BAR_WIDTH = 12
_MAX_VALUE_LENGTH = 60


def render_diff(report: DiffReport, all_tensors: bool) -> RenderableType:
    """Differences in structure and, if values were compared, in values: of the whole, by layer and
    by kind or, with ``all_tensors``, of each tensor."""
    parts: list[RenderableType] = [_model_table(report)]
    parts += _structure_lines(report)
    if report.whole is None:
        hint = f"--values compares the values too: reads {data_text(report.read_bytes)}"
        parts += [Text(), Text(hint, style="dim")]
        return Group(*parts)
    has_base = report.whole.change_a is not None
    parts += [Text(), *(Text(line) for line in _summary_lines(report))]
    if all_tensors:
        pairs = [pair for pair in report.tensors if pair.values is not None]
        rows = [(pair.tensor, pair.values) for pair in pairs if pair.values is not None]
        parts += [Text(), _values_table("tensor", rows, has_base)]
        return Group(*parts)
    parts += [
        Text(),
        _values_table("", [(each.name, each.values) for each in report.layers], has_base),
    ]
    kinds = sorted(report.kinds, key=_decreasing_difference)[:_MAX_KINDS]
    parts += [
        Text(),
        _values_table("kind of tensor", [(each.name, each.values) for each in kinds], has_base),
    ]
    more = len(report.kinds) - len(kinds)
    hint = f"and {plural(more, 'kind')} that differ less; " if more else ""
    parts.append(Text(f"{hint}--tensors lists every tensor", style="dim"))
    return Group(*parts)


def _decreasing_difference(group: GroupReport) -> float:
    return -(group.values.difference or 0.0)


def _model_table(report: DiffReport) -> RenderableType:
    table = plain_table("", "", "", "", "")
    for role, model in (("a", report.a), ("b", report.b), ("base", report.base)):
        if model is not None:
            table.add_row(Text(role, style="bold"), printable(model.name), *_model_facts(model))
    return table


def _model_facts(model: ComparedModel) -> Iterator[str]:
    yield f"{count_text(model.parameters)} parameters"
    yield plural(model.layers, "layer")
    yield f"{plural(model.tensors, 'tensor')}, {' and '.join(list(model.dtypes)[:2])}"


def _structure_lines(report: DiffReport) -> Iterator[RenderableType]:
    for name, only in ((report.a.name, report.only_a), (report.b.name, report.only_b)):
        if only:
            yield Text(f"only in '{printable(name)}': {_listed_names(only)}", style="yellow")
    shapes = [pair for pair in report.tensors if pair.shape_a != pair.shape_b]
    if shapes:
        listed = [
            f"{pair.tensor} ({shape_text(pair.shape_a)} and {shape_text(pair.shape_b)})"
            for pair in shapes
        ]
        yield Text(f"shapes differ: {_listed_names(listed)}", style="yellow")
    dtypes = [pair for pair in report.tensors if pair.dtype_a != pair.dtype_b]
    if dtypes:
        first = dtypes[0]
        yield Text(
            f"{plural(len(dtypes), 'tensor')} of another type: {first.tensor} is {first.dtype_a} "
            f"in a and {first.dtype_b} in b"
        )
    for setting in report.settings[:_MAX_NAMES]:
        a, b = map(_value_text, (setting.a, setting.b))
        yield Text(f"config.json: {printable(setting.key)} is {a} in a, {b} in b")
    if len(report.settings) > _MAX_NAMES:
        yield Text(f"and {len(report.settings) - _MAX_NAMES} more values of config.json")
    if not (report.only_a or report.only_b or shapes):
        yield Text(f"the same {plural(len(report.tensors), 'tensor')}, of the same shapes")


def _value_text(value: object) -> str:
    return "not set" if value is None else printable(repr(value))[:_MAX_VALUE_LENGTH]


def _listed_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return printable(", ".join(names[:_MAX_NAMES])) + more


def _summary_lines(report: DiffReport) -> Iterator[str]:
    whole = report.whole
    assert whole is not None
    yield (
        f"b differs from a by {percent_text(whole.difference)} of a's norm, cosine "
        f"{cosine_text(whole.cosine)}, in {percent_text(whole.changed)} of {whole.elements:,} "
        "elements"
    )
    if whole.change_a is not None:
        yield (
            f"of the base's norm, a changed {percent_text(whole.change_a)} and b "
            f"{percent_text(whole.change_b)}; cosine of the changes "
            f"{cosine_text(whole.change_cosine)}; {percent_text(whole.opposed)} of what both "
            "changed goes in opposite directions"
        )


def _values_table(title: str, rows: Sequence[tuple[str, ValuesReport]], has_base: bool) -> ByWidth:
    """One row per name; a narrow terminal gets no chart and fewer columns."""
    return ByWidth(lambda width: _table_of_width(title, rows, has_base, width))


def _table_of_width(
    title: str, rows: Sequence[tuple[str, ValuesReport]], has_base: bool, width: int
) -> Table:
    charts = width >= (100 if has_base else 72)
    has_cosine = not has_base or width >= 80
    titles = ["‖b-a‖/‖a‖", *[""] * charts, *["cosine", "changed"] * has_cosine]
    table = plain_table(title, *titles, *(("Δa", "Δb", "cos Δ", "opposed") if has_base else ()))
    most = max((values.difference or 0.0 for _, values in rows), default=0.0)
    for name, values in rows:
        share = (values.difference or 0.0) / most if most else 0.0
        cells = [percent_text(values.difference)]
        if charts:
            cells.append(bar(share, _BAR_WIDTH))
        if has_cosine:
            cells += [cosine_text(values.cosine), percent_text(values.changed)]
        if has_base:
            cells += [percent_text(values.change_a), percent_text(values.change_b)]
            cells += [cosine_text(values.change_cosine), percent_text(values.opposed)]
        table.add_row(printable(name), *cells)
    for number, column in enumerate(table.columns):
        column.no_wrap = True
        if number:
            column.min_width = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
            column.justify = "right"
    rest = sum((column.min_width or 0) + 2 for column in table.columns)
    table.columns[0].overflow = "ellipsis"  # shorten the name, not the numbers
    table.columns[0].max_width = max(width - rest, 8)
    if charts:
        table.columns[2].justify, table.columns[2].style = "left", "cyan"
    return table


def percent_text(value: float | None) -> str:
    """A share in per cent; ``-`` if undefined."""
    if value is None:
        return "-"
    percent = 100 * value
    return f"{percent:.3g} %" if 0.01 <= abs(percent) < 1000 or not percent else f"{percent:.1e} %"


def cosine_text(value: float | None) -> str:
    """A cosine; ``-`` if undefined."""
    return "-" if value is None else f"{value:.4f}"
