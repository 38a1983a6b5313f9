"""The report as a page: whole in itself, made of the records; drawn by a browser where there is
one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mergeloom
from mergeloom.cli import app
from mergeloom.report.html.page import diff_page, merge_page
from mergeloom.report.json import to_json_types
from tests.planners.support import llama

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

CONFIG = """merge_method: slerp
base_model: a
slices:
  - sources:
      - {model: a, layer_range: [0, 4]}
      - {model: "b</script>", layer_range: [0, 4]}
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 1]
    - value: 0.25
dtype: bfloat16
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    llama(folder / "a")
    llama(folder / "b</script>", seed=1)
    (folder / "merge.yml").write_text(CONFIG)
    return folder / "merge.yml"


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def tensors_of(details: Any) -> list[dict[str, Any]]:
    """The rows that a page's lines stand for."""
    rows = []
    for line in details["tensors"].splitlines():
        template, kind, inputs, *numbers = line.split(" ")
        parts = details["templates"][int(template)].split("\0")
        name = parts[0] + "".join(a + b for a, b in zip(numbers, parts[1:], strict=True))
        shared = ("shape", "dtype", "layer", "how", "because", "values")
        fields = ("model", "layer", "tensor", "base", "values")
        own = [dict(zip(fields, each, strict=True)) for each in details["inputs"][int(inputs)]]
        kinds = zip(shared, details["kinds"][int(kind)], strict=True)
        rows.append({"name": name, **dict(kinds), "inputs": own})
    return rows


def drawn(page: str, folder: Path) -> str:
    """What a browser makes of a page."""
    (folder / "page.html").write_text(page)
    command = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    found = subprocess.run(
        [*command, f"--user-data-dir={folder / 'browser'}", (folder / "page.html").as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return found.stdout


def test_a_page_contains_its_records_and_loads_nothing(config: Path) -> None:
    planned = mergeloom.plan(config)
    page = planned.page()
    data = data_of(page)
    assert data["report"] == to_json_types(planned.report)
    assert data["details"]["text"] == CONFIG
    assert tensors_of(data["details"]) == to_json_types(planned.details)["tensors"]
    # The one address in it names the language of pictures; nothing is fetched.
    assert set(re.findall(r"https?://[\w./]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<link|@import|url\(|\bsrc=|fetch\(|import\(", page)


def test_many_tensors_cost_few_bytes_each(config: Path) -> None:
    planned = mergeloom.plan(config)
    details = planned.details
    (row,) = [each for each in details.tensors if each.name.endswith("layers.2.mlp.up_proj.weight")]
    rows = tuple(
        replace(row, name=f"model.layers.2.mlp.experts.{number}.up_proj.weight")
        for number in range(20_000)
    )
    many = merge_page(planned.report, replace(details, tensors=rows))
    assert len(many) - len(planned.page()) < 20 * len(rows)
    assert tensors_of(data_of(many)["details"])[-1]["name"] == rows[-1].name


def test_each_value_refers_to_its_line(config: Path) -> None:
    details = mergeloom.plan(config).details
    rows = {tensor.name: tensor for tensor in details.tensors}
    (number,) = rows["model.layers.2.self_attn.q_proj.weight"].values
    value = details.values[number]
    assert (value.parameter, value.line, value.filter) == ("t", 9, "self_attn")
    assert value.value == pytest.approx(2 / 3)
    (other,) = rows["model.norm.weight"].values
    assert (details.values[other].line, details.values[other].value) == (11, 0.25)
    assert details.models[rows["model.norm.weight"].inputs[0].model] == "a"


def test_memory_of_the_steps_stays_below_the_planned_peak(config: Path) -> None:
    planned = mergeloom.plan(config)
    details = planned.details
    assert details.steps[-1].written_bytes == planned.report.output.parameters * 2
    for step in details.steps:
        buffers = step.kept_bytes + step.resident_bytes + step.moving_bytes
        assert details.overhead_bytes + buffers <= planned.report.memory.peak_bytes


def test_a_merge_stores_its_details(config: Path, tmp_path: Path) -> None:
    result = mergeloom.merge(config, tmp_path / "out")
    kept = mergeloom.read_details(tmp_path / "out")
    assert kept == result.details
    assert result.details.samples
    assert "worker 1" in {lane.title for lane in kept.lanes}
    assert set(kept.tasks) - {""} <= {tensor.name for tensor in kept.tensors}
    assert max(each.memory_bytes for each in kept.samples) <= result.report.memory.peak_bytes
    app(
        ["report", str(tmp_path / "out"), "--html", str(tmp_path / "report.html")],
        standalone_mode=False,
    )
    assert data_of((tmp_path / "report.html").read_text()) == data_of(result.page())


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_a_browser_draws_the_page(config: Path, tmp_path: Path) -> None:
    found = drawn(mergeloom.plan(config).page(), tmp_path)
    assert "data-ready=" in found  # the script came to its end
    for text in ("Which layers of which model", "Parameters over layers", "39 tensors"):
        assert f">{text}</h2>" in found
    assert found.count('class="cell"') == 2 * (4 + 1)
    assert "b&lt;/script&gt; 0" in found
    models = [config.parent / name for name in ("a", "b</script>", "a")]
    lanes = drawn(mergeloom.merge(config, tmp_path / "out").page(), tmp_path)
    assert ">What each thread did</h2>" in lanes
    inputs = mergeloom.diff_inputs(tmp_path / "out")
    stored = mergeloom.read_report(tmp_path / "out")
    beside = drawn(merge_page(stored, mergeloom.read_details(tmp_path / "out"), inputs), tmp_path)
    assert ">How far the output is from its inputs</h2>" in beside
    assert "data-ready=" in beside
    assert beside.count('class="cell"') > 39  # beside the bands of layers, a heat map
    compared = drawn(diff_page(mergeloom.diff(*models, values=True)), tmp_path)
    assert "data-ready=" in compared
    assert compared.count('class="cell"') == 39


KEYS = """
const press = (key) => document.activeElement.dispatchEvent(
  new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const told = [];
const note = () => told.push(document.getElementById("tip").textContent.split("\\n").slice(0, 2));
const first = document.querySelectorAll("svg [tabindex='0']")[0];
first.focus(); note();
for (const key of ["ArrowRight", "ArrowDown", "ArrowUp", "ArrowLeft"]) { press(key); note(); }
document.querySelector("input").focus(); press("Enter");
const chosen = () => told.push([document.querySelector(".detail h3").textContent]);
chosen();
for (const key of ["ArrowDown", "End", "Home"]) { press(key); chosen(); }
document.body.textContent = JSON.stringify(told);
"""


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_the_keyboard_moves_through_pictures_and_tensors(config: Path, tmp_path: Path) -> None:
    page = mergeloom.plan(config).page().replace("</body>", f"<script>{KEYS}</script></body>")
    found = re.search(r"<body>(\[.*?\]\])", drawn(page, tmp_path))
    assert found is not None
    told = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">"))
    layer = [f"output layer {i}: slerp of 2" for i in range(2)]
    assert told[:5] == [
        [layer[0], "a, layer 0 (base)"],
        [layer[1], "a, layer 1 (base)"],
        [layer[1], "b</script>, layer 1"],
        [layer[1], "a, layer 1 (base)"],
        [layer[0], "a, layer 0 (base)"],
    ]
    first, second = "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"
    assert [name for (name,) in told[5:]] == [first, second, "lm_head.weight", first]
