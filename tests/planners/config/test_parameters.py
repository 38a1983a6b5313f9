from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeloom.engine.base.errors import ConfigError
from mergeloom.methods.declare import Method, Parameter
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.parameter_blocks import read_parameters
from mergeloom.planners.config.parameters import Level, Parameters, gradient_value, resolve
from mergeloom.planners.config.yaml_values import load_documents

T = Parameter("t", float, "place between the models", 0.0, 0.0, 1.0)
WEIGHT = Parameter("weight", float, "weight")
FLAG = Parameter("normalize", bool, "flag", True)
STEPS = Parameter("steps", int, "steps", 1)


class Any(Method):
    name = "any"
    model_parameters = (WEIGHT,)
    settings = (T, FLAG, STEPS)


def block(text: str, findings: Findings | None = None) -> Parameters:
    findings = findings or Findings()
    (value,) = load_documents(text, "c.yml", findings)
    return read_parameters(value, Any(), False, findings)


def value(parameter: Parameter, levels: list[Level], tensor: str, t: float = 0.0) -> object:
    found = resolve(parameter, levels, tensor, t)
    return None if found is None else found.value


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=9), st.floats(0, 1))
def test_gradients_interpolate_linearly(values: list[float], t: float) -> None:
    if len(values) == 1:
        expected = values[0]
    else:
        expected = float(np.interp(t, np.linspace(0, 1, len(values)), values))
    assert gradient_value(values, t) == pytest.approx(expected, abs=1e-9)


def test_the_ends_of_a_gradient_are_exact() -> None:
    assert gradient_value([0.1, 0.7, 0.3], 0.0) == 0.1
    assert gradient_value([0.1, 0.7, 0.3], 0.5) == 0.7
    assert gradient_value([0.1, 0.7, 0.3], 1.0) == 0.3


def test_the_first_filter_that_admits_a_name_wins() -> None:
    levels = [
        Level(
            "global",
            block(
                "t: [{filter: self_attn, value: [0, 1]}, {filter: '*', value: 0.25}, {value: 0.5}]"
            ),
        )
    ]
    assert value(T, levels, "model.layers.3.self_attn.q_proj.weight", 0.75) == 0.75
    assert value(T, levels, "model.layers.3.mlp.up_proj.weight", 0.75) == 0.25


def test_no_match_falls_through_to_the_next_level() -> None:
    levels = [
        Level("model", block("weight: [{filter: mlp, value: 3}]")),
        Level("slice", Parameters()),
        Level("module", block("weight: [{filter: norm, value: 2}]")),
        Level("global", block("weight: 1")),
    ]
    assert value(WEIGHT, levels, "mlp.weight") == 3.0
    assert value(WEIGHT, levels, "norm.weight") == 2.0
    assert value(WEIGHT, levels, "q.weight") == 1.0
    assert value(T, levels, "q.weight") is None


def test_values_know_where_they_come_from() -> None:
    levels = [Level("global", block("\nt:\n  - filter: mlp\n    value: [0, 1]\n"))]
    found = resolve(T, levels, "x.mlp.y", 0.5)
    assert found is not None
    assert (found.value, found.level, found.t) == (0.5, "global", 0.5)
    assert found.entry is not None
    assert found.entry.place.line == 3


def test_a_list_of_booleans_is_picked_from() -> None:
    levels = [Level("global", block("normalize: [true, false, true]"))]
    assert [value(FLAG, levels, "x", t) for t in (0.0, 0.4, 0.5, 0.9, 1.0)] == [
        True, True, False, False, True,
    ]  # fmt: skip


def test_zero_and_one_stand_for_booleans() -> None:
    assert value(FLAG, [Level("global", block("normalize: 0"))], "x") is False
    assert value(FLAG, [Level("global", block("normalize: 1.0"))], "x") is True


def test_values_out_of_range_name_their_place() -> None:
    for text, message in {
        "t: 1.5": r"c\.yml:1: t: 't' must lie in \[0, 1\], not 1\.5",
        "t: true": "must be a number, not true",
    }.items():
        findings = Findings()
        block(text, findings)
        with pytest.raises(ConfigError, match=message):
            findings.check()


def test_an_invalid_value_along_a_gradient_names_its_place() -> None:
    levels = [Level("global", block("\nsteps: [1, 2]"))]
    assert value(STEPS, levels, "x", 1.0) == 2
    with pytest.raises(ConfigError, match=r"c\.yml:2: steps: 'steps' must be a whole number"):
        value(STEPS, levels, "x", 0.5)
