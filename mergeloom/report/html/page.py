"""Writes the HTML page: the records as data, and a script that displays them. Needs no network."""

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
    """The page of a plan or merge; ``details`` is ``None`` if they were not kept, ``compared`` if
    the weights were not read."""
    what = "merge" if isinstance(report, MergeReport) else "plan"
    name = report.configuration or report.method
    return _filled_page(
        f"{what} of {name}", {"report": report, "details": details, "compared": compared}
    )


def diff_page(report: DiffReport) -> str:
    """The page of a comparison of two models."""
    return _filled_page(f"{report.a.name} and {report.b.name}", {"diff": report})


_SCRIPT_FILES = (
    *("elements", "numbers", "colours", "chart", "records"),
    *("headline", "layer_map", "parameters", "memory", "threads", "codes", "heat_map"),
    *("inputs_diff", "tensors", "inputs", "family", "configuration", "diff", "main"),
)
"""The files of the script; each may use the names of those before it."""

_MAX_NOTEBOOK_TENSORS = 20_000
"""Maximum number of tensors listed in a notebook, which stores the whole page."""


def notebook_frame(report: PlanReport | MergeReport, details: Callable[[], DetailsReport]) -> str:
    """The page of a plan or merge for a notebook: in a frame, isolated from the notebook's styles
    and scripts. It lists no tensors if there are very many."""
    listed = report.output.tensors <= _MAX_NOTEBOOK_TENSORS
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


def _filled_page(title: str, documents: dict[str, Document | None]) -> str:
    data = ",".join(f'"{name}":{_document_json(found)}' for name, found in documents.items())
    # The data must not close its script element.
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


def _document_json(document: Document | None) -> str:
    if isinstance(document, DetailsReport):
        return json.dumps(compact(document), separators=(",", ":"))
    return "null" if document is None else encode(document, indent=None)


def _script() -> str:
    """The files of the script in one function, which keeps their names private."""
    parts = "".join(_asset(f"script/{name}.js") for name in _SCRIPT_FILES)
    return f'"use strict";\n(() => {{\n{parts}}})();'


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
