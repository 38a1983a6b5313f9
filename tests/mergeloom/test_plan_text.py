"""What a plan shows beside its layers: parameters as little charts, bands, budgets."""

from __future__ import annotations

from pathlib import Path

import pytest

import mergeloom
from mergeloom.cli import app
from mergeloom.report.budgets import budgets_report
from mergeloom.report.terminal.bars import bar, line_chart, range_bar
from tests.mergeloom.support import run
from tests.planners.support import llamas

CONFIG = """merge_method: ties
base_model: a
models:
  - model: b
    parameters:
      weight: [0, 0.5, 1]
      density:
        - {filter: mlp, value: 0.5}
        - value: 0.25
parameters: {normalize: false}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    llamas(tmp_path, "ab")
    path = tmp_path / "merge.yml"
    path.write_text(CONFIG)
    return path


def test_reported_parameters_are_those_of_the_tensors(config: Path) -> None:
    report = mergeloom.plan(config).report
    lines = {(line.parameter, line.filter): line for line in report.parameters}
    both = {("density", "mlp"), ("density", None)}
    assert set(lines) == {("normalize", None), ("weight", None)} | both
    assert lines["density", "mlp"].place.line == 8
    for layer in range(4):
        (tensor,) = mergeloom.explain(config, f"layers.{layer}.self_attn.q_proj").tensors
        values = tensor.inputs[1].parameters
        assert lines["weight", None].values[layer] == values["weight"].value
        assert lines["density", None].values == (values["density"].value,)


def test_each_slice_has_its_own_curve(config: Path) -> None:
    config.write_text(
        "merge_method: slerp\nbase_model: a\nslices:\n"
        "  - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]\n"
        "    parameters: {t: [0.2, 0.4]}\n"
        "  - sources: [{model: a, layer_range: [2, 4]}, {model: b, layer_range: [2, 4]}]\n"
        "parameters: {t: [0, 1]}\n"
    )
    own, whole = sorted(mergeloom.plan(config).report.parameters, key=lambda line: line.place.line)
    assert (own.layers, own.values) == ((0, 2), (0.2, 0.4))
    assert (whole.layers, whole.values) == ((0, 4), (0, 1, 0, 1))


def test_parameters_are_printed_with_curves(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app(["plan", str(config)], standalone_mode=False)
    out = capsys.readouterr().out
    assert "weight     b   all            0-3     ▁▃▆█  0 to 1\n" in out
    assert "density    b   *mlp*          0-3           0.5\n" in out
    assert "normalize      all            0-3           false\n" in out
    plain = run("plan", config, PYTHONIOENCODING="ascii").stdout
    assert "_,+#  0 to 1" in plain or plain.isascii()


def test_bars_and_curves_are_drawn_in_eighths() -> None:
    assert [bar(share, 4) for share in (0, 0.5, 1)] == ["░░░░", "██░░", "████"]
    assert bar(0.03125, 4) == "▏░░░"
    assert line_chart([0, 1, 2, 3], 4) == "▁▃▆█"
    assert line_chart([5, 5], 8) == "▄▄"
    assert len(line_chart(list(range(100)), 24)) == 24
    assert [range_bar(*span, 8, 4) for span in ((0, 2), (2, 8), (0, 1), (3, 3))] == [
        *("█░░░", "░███", "█░░░", "░░░░"),
    ]


def test_budgets_begin_with_the_smallest_that_works(config: Path) -> None:
    planned = mergeloom.plan(config)
    report = budgets_report(planned)
    first = report.rows[0]
    assert first.budget_bytes == planned.report.memory.minimum_bytes
    for row in report.rows:
        again = mergeloom.plan(config, ram=row.budget_bytes).report
        assert row.peak_bytes == again.memory.peak_bytes <= row.budget_bytes
        assert (row.read_bytes, row.repeated_bytes) == (
            again.io.read_bytes,
            again.io.repeated_bytes,
        )
    with pytest.raises(mergeloom.BudgetError):
        mergeloom.plan(config, ram=first.budget_bytes - (1 << 20))
