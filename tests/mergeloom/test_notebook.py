"""The example notebook: its cells run in order, and what they show is what a notebook shows."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import mergeloom
from tests.mergeloom.support import ROOT

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """What the last line of a cell evaluates to, as a notebook shows it."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    if last is None:
        return None
    assert isinstance(last, ast.Expr)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)


def test_its_cells_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            shown.append(run_cell("".join(cell["source"]), names))
    _, planned, memory, settings, progress, result, sound, difference, told = shown
    assert isinstance(planned, mergeloom.PlannedMerge)
    assert isinstance(result, mergeloom.MergeResult)
    assert planned._repr_html_().startswith("<iframe")
    assert " MiB at most; " in memory
    assert settings == {"t": (pytest.approx(2 / 3), "global")}
    assert progress.startswith("100%")
    assert sound
    assert difference.startswith("the merge is ")
    assert told == ("unknown-method", "unknown merge method 'slurp'", "did you mean 'slerp'?")
    assert capfd.readouterr() == ("", "")  # the library prints nothing
