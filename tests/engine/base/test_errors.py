"""Errors as data: what, where, how to mend it; one or several."""

from __future__ import annotations

import copy
import pickle

import pytest

from mergeloom.engine.base.errors import (
    CheckpointError,
    ConfigError,
    Finding,
    LoomError,
    Place,
    RunError,
    Severity,
)
from mergeloom.engine.base.suggest import nearest, suggest

PLACE = Place("c.yml", 3, "models[0]")


def test_an_error_carries_place_cause_and_remedy() -> None:
    error = PLACE.error("'x' is no model", "write 'y'", "no-model")
    assert str(error) == "c.yml:3: models[0]: 'x' is no model: write 'y'"
    assert (error.cause, error.place, error.remedy) == ("'x' is no model", PLACE, "write 'y'")
    assert (error.code, error.exit_code) == ("no-model", 2)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (str(again), again.findings) == (str(error), error.findings)


def test_an_error_without_more_is_its_message() -> None:
    error = RunError("the disk is full")
    assert (str(error), error.place, error.remedy) == ("the disk is full", None, "")
    assert (error.code, error.exit_code) == ("run", 1)


def test_a_place_is_given_once() -> None:
    error = CheckpointError("no such model").at(PLACE)
    assert type(error) is CheckpointError
    assert str(error) == "c.yml:3: models[0]: no such model"
    assert str(error.at(Place("other.yml"))) == str(error)
    assert str(error.at(None)) == str(error)


def test_several_findings_are_one_error_that_speaks_for_the_first_error() -> None:
    warning = Finding("odd", Place("c.yml", 1), severity=Severity.WARNING)
    error = ConfigError.of([warning, Finding("wrong", PLACE, "mend it", "wrong")])
    assert str(error) == "c.yml:1: odd\nc.yml:3: models[0]: wrong: mend it"
    assert (error.cause, error.code, error.remedy) == ("wrong", "wrong", "mend it")
    assert isinstance(error, LoomError)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("BFloat16", "did you mean 'bfloat16'?"),
        ("floot32", "did you mean 'float32'?"),
        ("q4_k_m", "known: bfloat16, float16, float32"),
    ],
)
def test_the_nearest_name_is_suggested_whatever_its_case(name: str, answer: str) -> None:
    assert suggest(name, ["float32", "bfloat16", "float16"]) == answer


def test_where_nothing_is_near_nothing_is_suggested() -> None:
    assert suggest("x", []) == ""
    assert nearest("weight", ["t"]) is None
    assert suggest("x" * 100_000, [f"n{i}" for i in range(40)]).endswith(" and 10 more")


def test_a_message_is_printable_whatever_it_quotes() -> None:
    error = ConfigError("'a\nb' differs: \ud800", place=Place("m\x1b[2J.yml", 3), remedy="é 言")
    assert str(error) == r"m\x1b[2J.yml:3: 'a\nb' differs: \ud800: é 言"
    both = LoomError.of([*error.findings, *error.findings])
    assert str(both) == f"{error}\n{error}"
    assert both.cause == "'a\nb' differs: \ud800"
