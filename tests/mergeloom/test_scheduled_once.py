"""A command schedules a graph once: the plan's schedule is the run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mergeloom
from mergeloom import api, output
from mergeloom.engine import job
from tests.planners.support import llama


@pytest.mark.parametrize("planned_first", [False, True])
def test_a_command_makes_one_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planned_first: bool
) -> None:
    models = [str(llama(tmp_path / name)) for name in "ab"]
    config = {
        "merge_method": "slerp",
        "base_model": models[0],
        "models": [{"model": each} for each in models],
        "parameters": {"t": 0.5},
    }
    made: list[str] = []
    for module in (api, output, job):
        whole = module.schedule

        def counted(*given: Any, whole: Any = whole, name: str = module.__name__) -> Any:
            made.append(name)
            return whole(*given)

        monkeypatch.setattr(module, "schedule", counted)
    out = tmp_path / "out"
    result = mergeloom.merge(mergeloom.plan(config) if planned_first else config, out)
    assert result.report.measured is not None
    assert made == ["mergeloom.api"]
