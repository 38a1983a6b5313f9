from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors import safe_open

import mergeloom
from mergeloom.engine.base.errors import ConfigError
from mergeloom.engine.graph.kernel import Copy
from mergeloom.planners import registry
from mergeloom.planners.config.config import Document
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.keys import Fields, MappingKind
from mergeloom.planners.config.load import config_from_data
from mergeloom.planners.config.model_reference import ModelReference, read_reference
from mergeloom.planners.config.yaml_values import Value
from mergeloom.planners.models.model import OutputTensor, PlannedModel
from mergeloom.planners.outline import Outline, OutlinePart, OutlineSlice, OutlineSource
from mergeloom.planners.planner import Planner, PlanningContext
from mergeloom.planners.recipe import Recipe
from mergeloom.planners.tensors import Contribution, TensorPlan
from tests.planners.support import llama, load_tensors

LEVEL = MappingKind("a pick", "at the top level", frozenset({"pick", "with", "name"}))


@dataclass(frozen=True, slots=True, kw_only=True)
class PickDocument(Document):
    planner: ClassVar[str] = "pick"
    model: ModelReference
    letters: str

    def named_models(self) -> list[ModelReference]:
        return [self.model]


class PickPlanner(Planner[PickDocument]):
    """Takes the tensors of a model whose names contain some letters: what the guide describes."""

    key: ClassVar[str] = "pick"

    def read(self, value: Value, findings: Findings) -> PickDocument | None:
        fields = Fields(value, LEVEL, findings)
        return PickDocument(
            name=fields.read("name", lambda each: each.text("'name'")),
            place=value.place,
            model=read_reference(fields.require("pick"), findings),
            letters=fields.require("with", "write letters of tensors' names").text("'with'"),
        )

    def plan(self, document: PickDocument, planning: PlanningContext) -> Recipe:
        model = planning.models.get(document.model)
        names = [name for name in model if document.letters in name]
        if not names:
            raise ConfigError(f"no tensor of '{model.name}' has '{document.letters}' in its name")

        def plans() -> Iterator[TensorPlan]:
            for name in names:
                yield TensorPlan(
                    name, None, None, (Contribution(model, name, "", False, {}),), {}, "picked"
                )

        tensors = {}
        for name in names:
            node = planning.builder.merge([model.node(planning.builder, name)], Copy(), name)
            tensors[name] = OutputTensor(name, node, model.dtype(name))
        source = OutlineSource(model.name, None)
        part = OutlinePart("default", 0, (OutlineSlice(None, "copied", "", (source,)),))
        return Recipe(
            output=PlannedModel(document.name or "the output", {}, tensors),
            outline=Outline(document.name, "pick", None, (part,)),
            plans=plans,
            left_out=lambda model, tensor: (f"it has no '{document.letters}'", None),
            stem="picked",
            metadata={"picked": document.letters},
            library=None,
        )


@pytest.fixture
def pick() -> Iterator[None]:
    registry.register(PickPlanner)
    yield
    registry.unregister("pick")


def pick_of(folder: Path, **more: Any) -> dict[str, Any]:
    return {"pick": str(folder), "with": "norm", **more}


@pytest.mark.usefixtures("pick")
def test_a_registered_planner_makes_its_own_kind_of_output(tmp_path: Path) -> None:
    model = llama(tmp_path / "a")
    planned = mergeloom.plan(pick_of(model))
    (left,) = planned.plan.unused
    assert left.reason == "it has no 'norm'"
    mergeloom.merge(planned, tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert files == {"picked.safetensors", "mergeloom_config.yml", "README.md"}
    found, inputs = load_tensors(tmp_path / "out"), load_tensors(model)
    assert found.keys() == {name for name in inputs if "norm" in name}
    assert all(torch.equal(found[name], inputs[name]) for name in found)
    with safe_open(tmp_path / "out" / "picked.safetensors", "pt") as file:
        assert file.metadata() == {"picked": "norm"}
    assert mergeloom.verify(tmp_path / "out").sound
    (explained,) = mergeloom.explain(planned, "model.norm.weight").tensors
    assert (explained.method, explained.copied_because) == ("copy", "picked")


@pytest.mark.usefixtures("pick")
def test_documents_of_several_planners_make_one_output(tmp_path: Path) -> None:
    llama(tmp_path / "a")
    (tmp_path / "c.yml").write_text(
        "name: half\nmerge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n"
        "parameters: {normalize: false}\n---\npick: half\nwith: norm\n"
    )
    report = mergeloom.plan(tmp_path / "c.yml", search=tmp_path).report
    assert [stage.method for stage in report.stages] == ["linear", "pick"]
    assert report.output.layers == 0
    assert "half" in str(mergeloom.plan(tmp_path / "c.yml", search=tmp_path)._repr_html_())


@pytest.mark.usefixtures("pick")
def test_errors_of_a_registered_planner_have_places(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'with' is missing: write letters of tensors' names"):
        config_from_data({"pick": "a"})
    llama(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"no tensor of '.*' has 'zz' in its name"):
        mergeloom.plan({"pick": str(tmp_path / "a"), "with": "zz"})


@pytest.mark.usefixtures("pick")
def test_a_key_has_one_planner() -> None:
    with pytest.raises(ConfigError, match="'pick' is already in use"):
        registry.register(PickPlanner)

    class Taken(PickPlanner):
        key: ClassVar[str] = "models"

    with pytest.raises(ConfigError, match="'models' is already in use"):
        registry.register(Taken)
    wrong: Any = Document
    with pytest.raises(ConfigError, match="is not a planner"):
        registry.register(wrong)


def test_packages_offer_planners_by_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    points = (
        EntryPoint("pick", f"{__name__}:PickPlanner", registry.ENTRY_POINT_GROUP),
        EntryPoint("broken", "no_such_module:P", registry.ENTRY_POINT_GROUP),
        EntryPoint("models", f"{__name__}:PickPlanner", registry.ENTRY_POINT_GROUP),
    )
    monkeypatch.setattr(metadata, "entry_points", lambda group: points)
    monkeypatch.setattr(registry, "_loaded", {})
    known = set(registry.keys())
    assert known >= {"merge_method", "pick", "broken"}
    assert "models" not in known
    monkeypatch.setattr(EntryPoint, "load", load)
    (document,) = config_from_data({"pick": "a", "with": "b"}).documents
    assert document.planner == "pick"
    with pytest.raises(ConfigError, match="'broken' cannot be loaded from 'no_such_module:P'"):
        config_from_data({"broken": 1})


def load(point: EntryPoint) -> Any:
    if point.name == "broken":
        raise ImportError("no such module")
    return PickPlanner
