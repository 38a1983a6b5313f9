"""docs/methods.md describes every method, and its example of a new one works."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mergeloom
from mergeloom.methods import registry
from mergeloom.methods.declare import REQUIRED, Method
from tests.planners.support import llamas, load_tensors

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
LENGTH = 0.02


@pytest.mark.parametrize("name", registry.names())
def test_every_method_is_described(name: str) -> None:
    (section,) = re.findall(rf"^### {name}\n(.*?)(?=^##)", TEXT, re.DOTALL | re.MULTILINE)
    method = registry.get(name)
    assert method.summary in section
    assert method.reference in section
    assert f"- **Works** {method.works}." in section
    for parameters, whose in ((method.model_parameters, "each model"), (method.settings, "all")):
        for parameter in parameters:
            default = parameter.default
            shown = (
                "required"
                if default is REQUIRED
                else "none"
                if default is None
                else str(default).lower()
                if isinstance(default, bool)
                else f"{default:g}"
            )
            row = f"| `{parameter.name}` | {whose} | {shown} | {parameter.range_text()} |"
            assert row in section
    assert (ROOT / "configs" / f"{name}.yml").is_file()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The example's file, in a folder from which it can be imported."""
    marker = r"<!-- example: (\S+) -->\n```python\n(.*?)```"
    ((file, code),) = re.findall(marker, TEXT, re.DOTALL)
    path = tmp_path / "site" / file
    path.parent.mkdir(parents=True)
    path.write_text(code, encoding="utf-8")
    return tmp_path / "site"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    llamas(tmp_path, ("base", "first", "second"), layers=2)
    path = tmp_path / "merge.yml"
    path.write_text(
        "merge_method: leash\n"
        f"base_model: {tmp_path}/base\n"
        f"models: [{{model: {tmp_path}/first}}, {{model: {tmp_path}/second}}]\n"
        f"parameters: {{length: {LENGTH}}}\n"
        "dtype: float32\n"
    )
    return path


@pytest.fixture
def imported(package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Method]]:
    monkeypatch.syspath_prepend(str(package))
    yield importlib.import_module("my_package.leash").Leash
    registry.unregister("leash")
    for module in ("my_package.leash", "my_package"):
        sys.modules.pop(module, None)


def check(folder: Path, output: Path) -> None:
    base, first, second = (load_tensors(folder / name) for name in ("base", "first", "second"))
    merged = load_tensors(output)
    assert merged.keys() == base.keys()
    for name, tensor in merged.items():
        start = base[name].double()
        step = (first[name].double() + second[name].double()) / 2 - start
        if step.norm() > LENGTH * start.norm():
            step *= LENGTH * start.norm() / step.norm()
        assert torch.allclose(tensor.double(), start + step, rtol=1e-5, atol=1e-6)


def test_the_example_method_runs_when_registered(
    imported: type[Method], config: Path, tmp_path: Path
) -> None:
    mergeloom.register_method(imported)
    mergeloom.merge(mergeloom.plan(config), tmp_path / "out")
    check(tmp_path, tmp_path / "out")


def test_the_example_method_runs_from_an_entry_point(
    package: Path, config: Path, tmp_path: Path
) -> None:
    (entry,) = re.findall(r'```toml\n(\[project.entry-points."(.*?)"\]\n(.*?))```', TEXT, re.DOTALL)
    installed = package / "my_package-1.0.dist-info"
    installed.mkdir()
    installed.joinpath("METADATA").write_text(
        "Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n"
    )
    lines = entry[2].replace('"', "")
    installed.joinpath("entry_points.txt").write_text(f"[{entry[1]}]\n{lines}")
    environment = {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{ROOT}"}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "mergeloom", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "norms of the base" in " ".join(run("methods", "leash").split())
    run("merge", str(config), str(tmp_path / "out"), "--quiet")
    check(tmp_path, tmp_path / "out")
