"""The Python API: short to look at, errors with attributes, warnings that arrive."""

from __future__ import annotations

import enum
import html
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mergeloom
from mergeloom import LoomError, LoomWarning, Observer, Progress
from tests.mergeloom.support import LINEAR


def test_plans_and_results_have_a_short_repr(config: Path, tmp_path: Path) -> None:
    planned = mergeloom.plan(config)
    result = mergeloom.merge(planned, tmp_path / "out")
    for found in (planned, result, planned.plan, planned.schedule, planned.plan.graph):
        assert len(repr(found)) < 500
    assert "4 layers" in repr(planned)
    assert str(tmp_path / "out") in repr(result)
    for page in (planned._repr_html_(), result._repr_html_()):
        assert page.startswith("<iframe srcdoc=")
    assert html.unescape(planned._repr_html_()).count(planned.page()) == 1


class Method(enum.Enum):
    LINEAR = "linear"


def test_numpy_numbers_paths_and_enums_are_accepted(config: Path, tmp_path: Path) -> None:
    document = {
        "merge_method": Method.LINEAR,
        "models": (
            {"model": tmp_path / "a", "parameters": {"weight": np.float32(1)}},
            {"model": tmp_path / "b", "parameters": {"weight": np.int64(3)}},
        ),
        "dtype": np.str_("bfloat16"),
        "parameters": {"normalize": np.bool_(True)},
    }
    options = {"ram": np.int64(2 << 30), "threads": np.int32(1), "seed": np.uint8(3)}
    planned = mergeloom.plan(document, search=str(tmp_path), **options)
    assert planned.report.options.ram == 2 << 30
    mergeloom.merge(planned, tmp_path / "mapped")
    mergeloom.merge(config, tmp_path / "written")
    names = ("mapped", "written")
    mapped, written = ((tmp_path / each / "model.safetensors").read_bytes() for each in names)
    assert mapped == written


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no threads": ({"threads": -3}, "threads is -3: it must be 1 or more"),
    "threads as text": ({"threads": "4"}, "threads must be a whole number"),
    "ram as a list": ({"ram": [1]}, "ram must be"),
    "ram of nothing": ({"ram": 0}, "ram is 0"),
    "half a byte": ({"ram": 0.5}, "ram must be a size"),
    "seed": ({"seed": 1.5}, "seed must be a whole number"),
    "device": ({"device": 3}, "device must be text"),
    "model_dirs": ({"model_dirs": ["a"]}, "model_dirs must be a mapping"),
    "search": ({"search": 3}, "search must be a list of paths"),
    "a flag": ({"allow_truncated_embeddings": "yes"}, "must be True or False"),
    "an unknown option": ({"sed": 1}, "there is no option 'sed': did you mean 'seed'?"),
    "io": ({"io": "magic"}, "io 'magic' is unknown"),
    "check": ({"check": -1}, "check is -1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_loom_errors(config: Path, tmp_path: Path, case: str) -> None:
    options, says = WRONG[case]
    with pytest.raises(LoomError) as caught:
        mergeloom.merge(config, tmp_path / "out", **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.code == "usage"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: mergeloom.plan(3), "config must be a path or a mapping, not 3 (int)"),
        (lambda: mergeloom.plan("merge_method: linear\n"), "the text of a configuration"),
        (lambda: mergeloom.plan(None), "config must be a path or a mapping, not None"),
        (lambda: mergeloom.plan(""), "config is empty"),
        (
            lambda: mergeloom.plan({"merge_method": 1j}),
            "merge_method: a configuration cannot have a value of type complex",
        ),
        (lambda: mergeloom.merge({}, "x"), "merge_method"),
        (lambda: mergeloom.verify(3), "the output must be a path"),
        (lambda: mergeloom.verify("nowhere"), "nowhere"),
        (lambda: mergeloom.inspect(""), "the model is empty"),
        (lambda: mergeloom.list_methods("tise"), "did you mean 'ties'?"),
        (lambda: mergeloom.schema("plam"), "did you mean 'plan'?"),
    ],
)
def test_wrong_calls_are_loom_errors(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(LoomError) as caught:
        call()
    assert says in str(caught.value)


def test_a_configuration_that_holds_itself_is_an_error() -> None:
    document: dict[str, Any] = {"merge_method": "linear"}
    document["models"] = [document]
    with pytest.raises(LoomError, match="too deep"):
        mergeloom.plan(document)


def test_errors_say_where_as_data(config: Path) -> None:
    config.write_text(LINEAR.replace("weight: 3", "weight: [x]"))
    with pytest.raises(LoomError) as caught:
        mergeloom.plan(config)
    place = caught.value.place
    assert place is not None
    assert (place.file, place.line) == ("merge.yml", 4)
    assert place.path.startswith("models[1].parameters.weight")
    assert str(caught.value).count("merge.yml:4") == 1


def test_search_accepts_one_folder_or_several(config: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "hub" / "acme").mkdir(parents=True, exist_ok=True)
        (tmp_path / name).rename(tmp_path / "hub" / "acme" / name)
    config.write_text(LINEAR.replace("model: ", "model: acme/"))
    for search in (str(tmp_path / "hub"), tmp_path / "hub", [tmp_path / "hub"]):
        assert mergeloom.plan(config, search=search).report.output.layers == 4


def test_warnings_reach_the_caller(config: Path, tmp_path: Path) -> None:
    config.write_text(LINEAR + "parameters:\n  density: 0.5\n")
    with pytest.warns(LoomWarning, match="density"):
        planned = mergeloom.plan(config)
    assert any("density" in str(each) for each in planned.warnings)
    told: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mergeloom.plan(config, observer=Observer(warned=lambda each: told.append(str(each))))
    assert any("density" in each for each in told)
    (each,) = [each for each in planned.warnings if "density" in str(each)]
    assert each.place is not None
    assert each.place.line == 7


def test_progress_is_snapshots_with_totals(config: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    mergeloom.merge(config, tmp_path / "out", observer=Observer(progressed=seen.append))
    last = seen[-1]
    assert last.share == 1.0
    assert last.done_bytes == last.total_bytes > 0
    assert last.merges_done == last.merges_total == 39
    assert last.seconds_left == 0
    with pytest.raises(AttributeError):
        last.read_bytes = 0
    assert len(set(map(id, seen))) == len(seen)
    assert [each.done_bytes for each in seen] == sorted(each.done_bytes for each in seen)


def test_every_command_is_a_function(config: Path, tmp_path: Path) -> None:
    assert mergeloom.__version__
    assert mergeloom.inspect(tmp_path / "a").parameters > 0
    (one,) = mergeloom.explain(config, "model.norm.weight").tensors
    assert [item.model for item in one.inputs] == ["a", "b"]
    assert len(mergeloom.explain(mergeloom.plan(config)).tensors) == 39
    assert len(mergeloom.list_methods().methods) >= 20
    assert mergeloom.schema("plan")["properties"]["schema_version"]
    mergeloom.merge(config, tmp_path / "out")
    assert mergeloom.verify(tmp_path / "out").sound
    for name in mergeloom.__all__:
        assert getattr(mergeloom, name) is not None
