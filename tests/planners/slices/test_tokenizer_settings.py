"""Tokenizer settings that change nothing, wherever the tokenizer is said to come from."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

import mergeloom
from mergeloom.engine.base.errors import ConfigError, LoomError
from tests.planners.support import llamas, plan_text

STAGES = """
merge_method: linear
models: [a, b]
parameters: {weight: 1}
tokenizer_source: union
name: first
---
merge_method: slerp
base_model: c
models: [c, first]
parameters: {t: 0.5}
tokenizer_source: SOURCE
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for model in llamas(tmp_path, "abcd", vocabulary=3):
        vocabulary(model, ["x", "y", "z"])
    return tmp_path


def vocabulary(folder: Path, tokens: list[str]) -> None:
    numbers = {token: number for number, token in enumerate(tokens)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": numbers}}))


@pytest.mark.parametrize("source", ["union", "base", "first", "d", "model:d"])
def test_stages_and_other_models_may_give_the_same_tokenizer(models: Path, source: str) -> None:
    plan = plan_text(STAGES.replace("SOURCE", source), models)
    assert plan.layers == 4


def test_an_absent_tokenizer_source_is_refused(models: Path) -> None:
    with pytest.raises(
        LoomError, match=r"config\.yml:12: tokenizer_source: 'firzt' is not 'union'"
    ):
        plan_text(STAGES.replace("SOURCE", "firzt"), models)


def test_a_directory_may_be_given_for_a_tokenizer_alone(models: Path) -> None:
    data = {
        "merge_method": "linear",
        "models": ["a", "b"],
        "parameters": {"weight": 1, "densty": 0.5},
        "tokenizer_source": "acme/tokens",
    }
    given = {"acme/tokens": models / "d"}
    with warnings.catch_warnings(record=True):
        planned = mergeloom.plan(data, model_dirs=given, search=[models])
    (warning,) = planned.plan.warnings
    assert warning.startswith("config: parameters.densty: 'linear' has no parameter 'densty'")
    with pytest.raises(ConfigError, match="'linear' has no parameter 'densty'"):
        mergeloom.plan(data, model_dirs=given, search=[models], strict=True)
    with pytest.raises(ConfigError, match=r"a directory is given for 'acme/token'.*'acme/tokens'"):
        mergeloom.plan(data, model_dirs={"acme/token": models / "d"}, search=[models])
