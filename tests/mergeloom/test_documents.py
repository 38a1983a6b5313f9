"""The JSON documents: one record a command, as its schema says."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import networkx
import pytest
from pydantic import TypeAdapter

import mergeloom
from mergeloom.engine.base.errors import ConfigError, LoomError
from mergeloom.report import json as documents
from mergeloom.report.budgets import budgets_report
from mergeloom.report.document import SCHEMA_VERSION, Document
from mergeloom.report.errors import error_report
from mergeloom.report.graph import write_graph
from mergeloom.report.records import DOCUMENTS
from mergeloom.report.tasks import task_list
from mergeloom.report.terminal.console import text_of
from mergeloom.report.terminal.plan import render_plan
from mergeloom.report.terminal.tasks import task_lines
from tests.mergeloom.support import LINEAR, run
from tests.planners.models.gguf.files import FAMILIES
from tests.planners.support import llama_names, llamas, write_checkpoint

STAGES = """name: mid
merge_method: linear
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]
dtype: float32
---
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: mid, layer_range: [1, 3], parameters: {scale: 0.5}}]
  - sources:
      - model: b
        layer_range: [3, 4]
        parameters: {scale: [{filter: o_proj, value: 0}, {filter: down_proj, value: 0}, {value: 1}]}
dtype: bfloat16
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    llamas(folder, "ab")
    (folder / "linear.yml").write_text(LINEAR)
    (folder / "stages.yml").write_text(STAGES)
    return folder


def merged(folder: Path) -> Document:
    return mergeloom.merge(folder / "linear.yml", folder / "out", check=2).report


def failed(folder: Path) -> Document:
    with pytest.raises(LoomError) as caught:
        mergeloom.plan({"merge_method": "linaer", "models": ["a"]})
    return error_report(caught.value)


def progressed(folder: Path) -> Document:
    seen: list[mergeloom.Progress] = []
    observer = mergeloom.Observer(progressed=seen.append)
    mergeloom.merge(folder / "linear.yml", folder / "seen", restart=True, observer=observer)
    return seen[-1]


def exported(folder: Path) -> Document:
    FAMILIES["llama"].model().save_pretrained(folder / "whole")
    return mergeloom.export(folder / "whole", folder / "whole.gguf", overwrite=True)


MADE: dict[str, Callable[[Path], Document]] = {
    "plan": lambda folder: mergeloom.plan(folder / "stages.yml", output=folder / "new").report,
    "merge": merged,
    "tasks": lambda folder: task_list(mergeloom.plan(folder / "stages.yml")),
    "explain": lambda folder: mergeloom.explain(folder / "stages.yml"),
    "inspect": lambda folder: mergeloom.inspect(folder / "a"),
    "verify": lambda folder: (merged(folder), mergeloom.verify(folder / "out"))[1],
    "lines": lambda folder: mergeloom.explain_lines(folder / "stages.yml"),
    "status": lambda folder: (merged(folder), mergeloom.status(folder / "out"))[1],
    "details": lambda folder: mergeloom.plan(folder / "stages.yml").details,
    "budgets": lambda folder: budgets_report(mergeloom.plan(folder / "linear.yml")),
    "diff": lambda folder: mergeloom.diff(folder / "a", folder / "b", values=True),
    "inputs-diff": lambda folder: (merged(folder), mergeloom.diff_inputs(folder / "out"))[1],
    "clean": lambda folder: mergeloom.clean(dry_run=True, everything=True),
    "export": exported,
    "progress": progressed,
    "methods": lambda folder: mergeloom.list_methods(),
    "error": failed,
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_matches_its_schema(folder: Path, name: str) -> None:
    report = MADE[name](folder)
    written = json.loads(documents.encode(report))
    assert written == documents.to_json_types(report)
    assert written["document"] == name
    assert written["schema_version"] == SCHEMA_VERSION
    assert written["program_version"] == metadata.version("mergeloom")
    schema = mergeloom.schema(name)
    assert set(schema["properties"]) == set(written)
    adapter = TypeAdapter(DOCUMENTS[name])
    assert adapter.validate_json(json.dumps(written)) == report
    assert json.loads(adapter.dump_json(report)) == written


def test_all_schemas_are_printed() -> None:
    found = json.loads(run("schema").stdout)
    assert set(found) == set(DOCUMENTS)
    peak = found["plan"]["$defs"]["MemoryReport"]["properties"]["minimum_bytes"]
    assert peak["description"] == "The smallest budget that works."


def test_a_plan_lists_stages_and_scaled_layers(folder: Path) -> None:
    report = mergeloom.plan(folder / "stages.yml", ram="2GiB", seed=5).report
    assert [(stage.name, stage.method, stage.dtype) for stage in report.stages] == [
        ("mid", "linear", "float32"),
        (None, "passthrough", "bfloat16"),
    ]
    slices = report.stages[1].parts[0].slices
    assert [(part.how, part.detail) for part in slices] == [
        ("copied", ""),
        ("scaled", "scaled by 0.5"),
        ("partly scaled", "mlp.down_proj, self_attn.o_proj scaled by 0"),
    ]
    assert report.output.dtypes == {"bfloat16": report.output.tensors}
    assert report.output.tied is False
    assert (report.options.ram, report.options.seed) == (2 << 30, 5)
    assert report.time.seconds > 0
    assert report.memory.peak_bytes >= report.memory.minimum_bytes
    text = text_of(render_plan(report))
    assert "stage 1 of 2 'mid'" in text
    assert text.count("copy of") == 2  # as they are, and the one in which parts are scaled
    words = " ".join(text.split())
    assert "scaled by 0.5 mid layers 1-2" in words
    assert "scaled copy of b layer 3" in words


def test_an_inspected_model_has_class_towers_and_dtypes(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 2,
        "vocab_size": 32,
    }
    write_checkpoint(tmp_path / "m", llama_names(2), config)
    assert mergeloom.inspect(tmp_path / "m").tokenizer is None
    words = {"model": {"vocab": {"x": 0, "y": 1}}, "added_tokens": [{"id": 7, "content": "z"}]}
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(words))
    (tmp_path / "m" / "tokenizer_config.json").write_text('{"tokenizer_class": "Llama"}')
    found = mergeloom.inspect(tmp_path / "m")
    assert (found.model_type, found.vocabulary, found.tied) == ("llama", 32, False)
    assert found.tokenizer is not None
    assert (found.tokenizer.kind, found.tokenizer.entries) == ("Llama", 8)
    assert found.quantisation is None
    assert [(stack.layers, len(stack.templates)) for stack in found.stacks] == [(2, 9)]


def test_errors_are_json_with_json(folder: Path) -> None:
    found = run("plan", folder / "nowhere.yml", "--json")
    assert found.returncode == 2
    document = json.loads(found.stdout)
    assert (document["document"], document["kind"]) == ("error", "ConfigError")
    assert document["exit_status"] == 2
    assert "nowhere.yml" in document["findings"][0]["cause"]
    assert found.stderr.startswith("error: ")
    usage = run("plan", "--json", "--threads", "0")
    assert usage.returncode == 2
    assert json.loads(usage.stdout)["kind"] == "UsageError"
    assert json.loads(usage.stdout)["findings"][0]["remedy"] == (
        "'mergeloom plan --help' shows how it is used"
    )


def test_a_report_is_shown_in_a_few_lines(folder: Path) -> None:
    report = mergeloom.explain(folder / "linear.yml")
    assert repr(report) == "ExplainReport(tensors=<39 entries>, token=None)"
    shown = repr(mergeloom.explain(folder / "linear.yml", "model.norm.weight"))
    assert shown.startswith("ExplainReport(tensors=(TensorReport(tensor='model.norm.weight'")
    assert len(shown) < 300


def test_explain_always_returns_a_list_of_tensors(folder: Path) -> None:
    for pattern, count in (("model.norm.weight", 1), ("layers.0", 9), (None, 39)):
        report = mergeloom.explain(folder / "linear.yml", pattern)
        assert len(documents.to_json_types(report)["tensors"]) == count
    with pytest.raises(ConfigError):
        mergeloom.explain(folder / "linear.yml", "layers.9")


@pytest.mark.parametrize("name", ["linear.yml", "stages.yml"])
@pytest.mark.parametrize("size", [20_000, 5_000_000_000])
def test_explain_agrees_with_the_plan(folder: Path, name: str, size: int) -> None:
    ignored = mergeloom.Observer(warned=lambda finding: None)
    planned = mergeloom.plan(folder / name, max_shard_size=size, observer=ignored)
    by_plan = mergeloom.explain(planned)
    assert len({tensor.file for tensor in by_plan.tensors}) == len(planned.plan.graph.files)
    found = mergeloom.explain(folder / name, max_shard_size=size, observer=ignored)
    assert found == by_plan
    one = mergeloom.explain(
        folder / name, by_plan.tensors[20].tensor, max_shard_size=size, observer=ignored
    )
    assert one.tensors == by_plan.tensors[20:21]


def graph_of(folder: Path, suffix: str) -> Path:
    path = folder / f"graph{suffix}"
    write_graph(mergeloom.plan(folder / "stages.yml").plan.graph, path)
    return path


def test_the_task_graph_is_written_for_other_tools(folder: Path) -> None:
    planned = mergeloom.plan(folder / "stages.yml")
    counts = planned.plan.graph.counts()
    graph: Any = networkx.read_graphml(graph_of(folder, ".graphml"))
    kinds = [kind for _, kind in graph.nodes(data="kind")]
    assert {kind: kinds.count(kind) for kind in counts} == counts
    assert networkx.is_directed_acyclic_graph(graph)
    ElementTree.parse(graph_of(folder, ".graphml"))
    again = networkx.node_link_graph(
        json.loads(graph_of(folder, ".json").read_text()), edges="edges"
    )
    assert set(again) == set(graph)
    assert again.number_of_edges() == graph.number_of_edges()
    dot = graph_of(folder, ".dot").read_text()
    assert dot.count(" -> ") == graph.number_of_edges()
    assert dot.startswith("digraph")
    with pytest.raises(LoomError, match="its suffix must say the format"):
        graph_of(folder, ".png")
    with pytest.raises(LoomError, match="cannot write"):
        write_graph(planned.plan.graph, folder / "no" / "graph.json")


def test_tasks_are_listed_in_the_order_of_the_run(folder: Path) -> None:
    planned = mergeloom.plan(folder / "stages.yml")
    report = task_list(planned)
    assert [task.number for task in report.tasks] == list(range(len(report.tasks)))
    written = [slot for task in report.tasks for slot in task.writes]
    assert [slot.name for slot in written] == [write.name for write in planned.plan.graph.writes]
    assert sum(slot.bytes or 0 for slot in written) == sum(
        write.nbytes for write in planned.plan.graph.writes
    )
    lines = list(task_lines(report))
    assert lines[0].startswith("0  model.embed_tokens.weight  32x8  on cpu, 1 pass")
    assert any("(of an earlier stage)" in line for line in lines)
    found = run("plan", folder / "stages.yml", "--tasks")
    assert found.stdout.splitlines() == lines
