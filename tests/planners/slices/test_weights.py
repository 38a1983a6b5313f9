"""Warnings about weights that do not count as written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.planners.support import llamas, plan_text


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        ("-1", "the weight of the only model is divided by itself: -1 counts as 1, and the sign"),
        ("0.5", "the weight of the only model is divided by itself: 0.5 counts as 1"),
        ("1", None),
    ],
)
def test_the_weight_of_an_average_of_one_model(
    tmp_path: Path, weight: str, says: str | None
) -> None:
    llamas(tmp_path, "a")
    text = f"merge_method: linear\nmodels: [{{model: a, parameters: {{weight: {weight}}}}}]\n"
    warnings = plan_text(text, tmp_path).warnings
    assert any(says in each for each in warnings) if says else not warnings
    assert not plan_text(f"{text}parameters: {{normalize: false}}\n", tmp_path).warnings
