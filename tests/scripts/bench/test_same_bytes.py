"""Merges in little memory and in plenty, compared: a whole run, and what counts as different."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.bench import same_bytes as budgets
from scripts.bench.measure import Measured


def test_a_run_compares_and_cleans_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--shape", "tiny", "--work", str(tmp_path / "w"), "--merges", "sce"]
    given += ["--memory-limit", "512MiB", "--json", str(tmp_path / "rows.json"), "--clean"]
    assert budgets.main(given) == 0
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["merge"] == "sce"
    assert row["failure"] is None
    assert row["read_bytes"] > 0
    assert (row["group_peak_bytes"] or row["peak_bytes"]) <= 512 << 20
    assert "the same" in capsys.readouterr().out
    assert not [path for path in (tmp_path / "w").iterdir() if path.is_dir()]
    config = json.loads((tmp_path / "w" / "sce.yml").read_text())
    assert len(config["models"]) == 3
    assert config["base_model"]


def measured(status: int, peak: int = 1 << 20) -> Measured:
    output = json.dumps({"io": {"read_bytes": 5}})
    return Measured(1.0, 1.0, peak, 0, 0, status, output, "error: no\n", None)


@pytest.mark.parametrize(
    ("little", "plenty", "expected"),
    [
        ((measured(0), {"a": "1"}), (measured(0), {"a": "1"}), None),
        ((measured(0), {"a": "1"}), (measured(0), {"a": "2"}), "a differ"),
        ((measured(0), {"a": "1"}), (measured(0), {"a": "1", "b": "2"}), "b differ"),
        ((measured(-9), {}), (measured(0), {"a": "1"}), "ended with status -9"),
        ((measured(0), {"a": "1"}), (measured(1), {}), "ended with status 1: error: no"),
        (
            (measured(0, 1 << 30), {"a": "1"}),
            (measured(0), {"a": "1"}),
            "used 1073741824 bytes, more than the limit",
        ),
    ],
)
def test_a_difference_a_failure_or_too_much_memory_is_a_failure(
    little: Any, plenty: Any, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter((little, plenty))
    monkeypatch.setattr(budgets, "_merged", lambda *given: next(answers))
    row = budgets.compare(Path("x.yml"), Path("out"), 512 << 20, grouped=False)
    assert row.merge == "x"
    if expected is None:
        assert row.failure is None
    else:
        assert row.failure is not None
        assert expected in row.failure


def test_an_unknown_merge_is_an_error_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert budgets.main(["--work", str(tmp_path), "--merges", "nothing"]) == 1
    assert "no merge method 'nothing'" in capsys.readouterr().err
