"""One identity of models, whatever they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergeloom.engine.base.errors import CheckpointError, LoomError
from mergeloom.planners.config.load import parse_config
from mergeloom.planners.models.resolve import Resolver
from mergeloom.planners.plan import Plan, make_plan
from mergeloom.planners.planner import PlanOptions
from tests.planners.support import llama, llamas, plan_text

BASED = "merge_method: task_arithmetic\nbase_model: m/x\nparameters: {lambda: 1}\nmodels:\n"


def plan_here(text: str, **options: dict[str, Path]) -> Plan:
    """The plan of a configuration whose models lie in the working directory."""
    return make_plan(parse_config(text, "c.yml"), Resolver(**options), PlanOptions())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    llamas(tmp_path / "m", "xyz")
    (tmp_path / "link").symlink_to(tmp_path / "m" / "x")
    return tmp_path


@pytest.mark.parametrize("spelling", ["./m/x", "m/x/", "m//x", "m/y/../x", "link", "~/m/x"])
def test_a_base_is_recognised_under_any_name(here: Path, spelling: str) -> None:
    text = f"{BASED}- {{model: '{spelling}'}}\n- {{model: m/y, parameters: {{weight: 1}}}}\n"
    plan = plan_here(text)
    assert list(plan.models) == ["m/x", "m/y"]
    made = plan.explain("model.norm.weight")
    assert [(item.model.name, item.is_base) for item in made.contributions] == [
        ("m/x", True),
        ("m/y", False),
    ]
    assert plan.warnings == ()


def test_a_model_listed_twice_is_warned_about(here: Path) -> None:
    weighted = "- {{model: {}, parameters: {{weight: 1}}}}\n"
    text = "merge_method: linear\nmodels:\n" + "".join(
        weighted.format(name) for name in ("m/x", "m/y", "./m/x")
    )
    (warning,) = plan_here(text).findings
    assert str(warning) == (
        "c.yml:5: models[2]: './m/x' is the model 'm/x', listed a second time: if that is "
        "intended, it counts twice"
    )
    slices = "merge_method: linear\nparameters: {weight: 1}\nslices:\n- sources:\n"
    for stop, warned in ((2, 1), (3, 0)):
        other = f"  - {{model: m/x, layer_range: [{stop - 2}, {stop}]}}\n"
        found = plan_here(f"{slices}  - {{model: m/x, layer_range: [0, 2]}}\n{other}").warnings
        assert len(found) == warned


def test_a_directory_is_recognised_whatever_its_name(here: Path) -> None:
    for name in ("a+b", "a@v1", "a+b@c+d"):
        llama(here / name, seed=4)
    for name in ("a+b", "a@v1", "./a+b@c+d", "{model: {path: a@v1}}"):
        assert len(plan_here(f"merge_method: passthrough\nmodels: [{{model: {name}}}]").models) == 1
    with pytest.raises(CheckpointError, match=r"c.yml:2: models\[0\]: .*'m/y'.* adapter"):
        plan_here("merge_method: passthrough\nmodels: [{model: a+b+m/y}]")
    given = plan_here(
        "merge_method: passthrough\nmodels: ['q+r']", model_dirs={"q+r": here / "a+b"}
    )
    assert list(given.models) == ["q+r"]


def test_a_directory_has_no_revision(here: Path) -> None:
    plan = plan_here("merge_method: passthrough\nmodels: ['m/x@v2']")
    assert plan.warnings == (
        "c.yml:2: models[0]: the revision of 'm/x@v2' has no effect: a local directory is taken as "
        "it is",
    )
    assert (
        plan_here(
            "merge_method: passthrough\nmodels: ['k/x@v2']", model_dirs={"k/x": here / "m" / "x"}
        ).warnings
        == ()
    )


def test_all_models_that_are_missing_are_named_at_once(here: Path) -> None:
    (here / "file.h5").write_bytes(b"")
    text = "merge_method: linear\nparameters: {weight: 1}\nmodels:\n"
    names = ("./m/xx", "file.h5", "acme/none", "m/y", "./m/w/a")
    with pytest.raises(CheckpointError) as caught:
        plan_here(text + "".join(f"- {name}\n" for name in names))
    first, second, third, fourth = map(str, caught.value.findings)
    assert first.endswith("nor a hub id (owner/name): did you mean 'm/x'?")
    assert second.startswith("c.yml:5: models[1]: 'file.h5' is a file, and a model is a")
    assert third.endswith("give its directory by --model-dir acme/none=PATH")
    assert fourth.startswith(
        "c.yml:8: models[4]: './m/w/a' is neither a directory nor a hub id (owner/name)"
    )


def test_an_error_says_what_was_found_instead_of_a_model(here: Path) -> None:
    (here / "pipe").mkdir()
    (here / "pipe" / "model_index.json").write_text("{}")
    for name, words in {
        "m": "'m' has no config.json: did you mean 'm/x'?",
        "pipe": "'pipe' is a pipeline (model_index.json) whose components have no weights",
    }.items():
        with pytest.raises(LoomError) as caught:
            plan_here(f"merge_method: passthrough\nmodels: [{name}]")
        assert str(caught.value).startswith(f"c.yml:2: models[0]: {words}")


def test_a_misspelt_stage_name_is_suggested(here: Path) -> None:
    text = "merge_method: passthrough\nmodels: [m/x]\nname: first\n---\n"
    text += "merge_method: passthrough\nmodels: [frist]"
    with pytest.raises(
        CheckpointError, match="no stage or directory 'frist': did you mean 'first'"
    ):
        plan_here(text)


def test_a_stage_gives_the_small_files_of_its_donor(tmp_path: Path) -> None:
    for model in llamas(tmp_path, "xyz"):
        (model / "tokenizer.model").write_text(model.name)
    text = "merge_method: passthrough\nmodels: [y]\nname: first\n---\n"
    text += "merge_method: slerp\nbase_model: first\nmodels: [first, x]\nparameters: {t: 0.5}"
    plan = plan_text(text, tmp_path)
    (file,) = [file for file in plan.side_files if file.name == "tokenizer.model"]
    assert b"".join(file.pieces()) == b"y"
