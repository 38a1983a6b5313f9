"""Writes the page: the records as data, and a script that draws them. It needs no network."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from mergeloom.engine.base.errors import OutputError
from mergeloom.report.detail_records import DetailsReport
from mergeloom.report.diff_records import DiffReport, InputsDiffReport
from mergeloom.report.document import Document
from mergeloom.report.html.compact import compact
from mergeloom.report.json import encode
from mergeloom.report.plan_records import MergeReport, PlanReport


def merge_page(
    report: PlanReport | MergeReport,
    details: DetailsReport | None,
    compared: InputsDiffReport | None = None,
) -> str:
    """The page of a plan or a merge; ``details`` may be lacking where they were not kept,
    ``compared`` where the weights were not read for it."""
    what = "merge" if isinstance(report, MergeReport) else "plan"
    name = report.configuration or report.method
    return _page(f"{what} of {name}", {"report": report, "details": details, "compared": compared})


def diff_page(report: DiffReport) -> str:
    """The page of two models beside each other."""
    return _page(f"{report.a.name} and {report.b.name}", {"diff": report})


_PARTS = (
    *("elements", "numbers", "colours", "chart", "records"),
    *("headline", "layer_map", "parameters", "memory", "threads", "codes", "heat_map"),
    *("inputs_diff", "tensors", "inputs", "family", "configuration", "diff", "main"),
)
"""The script's files; each takes what it needs from those before it."""

_FRAMED_TENSORS = 20_000
"""Tensors that a page within a notebook lists: all of it is stored with the notebook."""


def framed(report: PlanReport | MergeReport, details: Callable[[], DetailsReport]) -> str:
    """The page of a plan or a merge as a notebook shows it: within a frame, apart from the
    notebook's own styles and scripts. Of very many tensors it has no list."""
    listed = report.output.tensors <= _FRAMED_TENSORS
    page = html.escape(merge_page(report, details() if listed else None))
    return (
        f'<iframe srcdoc="{page}" title="mergeloom" loading="lazy" style="width:100%;height:640px;'
        'border:1px solid #8888;border-radius:6px;resize:vertical"></iframe>'
    )


def write_page(page: str, path: Path) -> None:
    """Write a page to a file.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        missing = not path.parent.is_dir()
        raise OutputError(
            f"cannot write '{path}': {error.strerror}",
            remedy=f"make the folder '{path.parent}' first" if missing else "",
        ) from error


def _page(title: str, documents: dict[str, Document | None]) -> str:
    data = ",".join(f'"{name}":{_data(found)}' for name, found in documents.items())
    # Nothing in the data may end the element that it stands in.
    data = data.replace("<", "\\u003c")
    text = _asset("page.html")
    for mark, part in (
        ("@title@", html.escape(title)),
        ("@style@", _asset("page.css")),
        ("@script@", _script()),
        ("@data@", f"{{{data}}}"),
    ):
        text = text.replace(mark, part, 1)
    return text


def _data(document: Document | None) -> str:
    if isinstance(document, DetailsReport):
        return json.dumps(compact(document), separators=(",", ":"))
    return "null" if document is None else encode(document, indent=None)


def _script() -> str:
    """The parts of the script as one function, so that they see each other and nobody else."""
    parts = "".join(_asset(f"script/{name}.js") for name in _PARTS)
    return f'"use strict";\n(() => {{\n{parts}}})();'


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
