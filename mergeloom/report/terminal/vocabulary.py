"""A vocabulary as text: sizes, and the origins of all rows or of one token's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from mergeloom.report.terminal.console import plain_table, plural

_ORIGIN_TITLES = {
    "own": "own",
    "bytes": "same bytes",
    "role": "same role",
    "prefix": "prefix",
    "made": "made",
    "base": "base's",
    "only": "only owner's",
    "mean": "mean",
    "named": "named",
    "zero": "zero",
    "padding": "padding",
}
"""Titles of the origins of rows, in the order of their columns."""

if TYPE_CHECKING:
    from mergeloom.report import plan_records, records


def render_vocabulary(found: plan_records.VocabularyReport) -> RenderableType:
    """Sizes, and one line per model."""
    text = Text.assemble(("vocabulary", "bold"), f"  {plural(found.tokens, 'token')}")
    text.append(f", {plural(found.rows, 'row')}; tokenizer of '{found.tokenizer}'")
    if found.added:
        text.append(f", {plural(found.added, 'token')} added")
    if found.removed:
        text.append(f", {plural(found.removed, 'token')} without a row left out")
    kinds = [kind for kind in _ORIGIN_TITLES if any(kind in item.origins for item in found.models)]
    titles = [_ORIGIN_TITLES[kind] for kind in kinds]
    table = plain_table("  rows of", "there are", *titles, "not used")
    for item in found.models:
        counts = (f"{item.origins.get(kind, 0):,}" for kind in kinds)
        table.add_row(f"  {item.model}", f"{item.rows:,}", *counts, f"{item.unused:,}")
    return Group(text, table)


def render_token(found: records.TokenReport) -> RenderableType:
    """The origin of a token's rows."""
    head = Text.assemble((repr(found.token), "bold"), f"  id {found.id}")
    table = plain_table("in the tables of", "its row is", "taken from")
    for item in found.models:
        rows = ", ".join(f"row {each.row} of {each.model}" for each in item.rows)
        table.add_row(item.model, item.words, rows)
    return Group(head, Text(), table)
