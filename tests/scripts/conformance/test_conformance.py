"""The comparison with mergekit: it finds what is wrong, and explains no more than it should."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mergeloom.methods import registry
from scripts.conformance.agreement import DIFFERENCES, Inputs, Results, compare
from scripts.conformance.cases import cases
from scripts.conformance.judge import REASONS
from tests.methods.support import run, tensor_merge

ROOT = Path(__file__).resolve().parents[3]
SHAPE = (40, 11)
WEIGHT = {"weight": 1.0, "density": 0.5}


def inputs_of(
    method: str,
    tensors: Sequence[torch.Tensor],
    models: Sequence[Mapping[str, Any]],
    **settings: Any,
) -> Inputs:
    """Inputs of which the first is the base."""
    merge = tensor_merge(method, tensors[0].shape, [{}, *models], 0, **settings)
    return Inputs(method, merge, tensors)


def merged(inputs: Inputs) -> torch.Tensor:
    """What mergeloom makes of them."""
    assert inputs.method is not None
    return run(registry.get(inputs.method).kernel(inputs.merge), inputs.tensors).clone()


def normal(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def ties(others: tuple[torch.Tensor, ...], base: torch.Tensor) -> Inputs:
    return inputs_of("ties", (base, *others), (WEIGHT,) * len(others))


def test_equal_results_agree() -> None:
    inputs = ties((normal(1), normal(2)), normal(0))
    result = merged(inputs)
    found = compare(Results.of(inputs, result, result))
    assert found.sound
    assert (found.units, found.explained, found.elements) == (0.0, {}, 440)


def test_one_wrong_element_is_found_in_either_program() -> None:
    inputs = ties((normal(1), normal(2)), normal(0))
    right, wrong = merged(inputs), merged(inputs)
    wrong[3, 4] += 1e-5
    for ours, theirs in ((right, wrong), (wrong, right), (wrong, wrong)):
        assert not compare(Results.of(inputs, ours, theirs)).sound
    wrong[3, 4] = float("nan")
    assert not compare(Results.of(inputs, right, wrong)).sound


def test_only_elements_at_the_threshold_may_be_decided_otherwise() -> None:
    """Half of four equal magnitudes is kept: which half is free, anything else is not."""
    tau = torch.tensor([4.0, -2.0, 2.0, 2.0, -2.0, 1.0])
    inputs = ties((tau,), torch.zeros(6))
    ours = merged(inputs)
    assert ours.tolist() == [4.0, -2.0, 2.0, 0.0, 0.0, 0.0]
    theirs = torch.tensor([4.0, 0.0, 0.0, 2.0, -2.0, 0.0])
    found = compare(Results.of(inputs, ours, theirs))
    assert found.sound
    assert found.explained == {"equal magnitudes": 4}
    theirs[5] = 1.0
    assert not compare(Results.of(inputs, ours, theirs)).sound


def test_votes_that_balance_may_be_decided_otherwise() -> None:
    base = torch.zeros(3)
    others = (torch.tensor([1.0, 1.0, 2.0]), torch.tensor([-1.0, 1.0, -1.0]))
    each = ({"weight": 1.0, "density": 1.0},) * 2
    inputs = inputs_of("ties", (base, *others), each)
    ours = merged(inputs)
    assert ours.tolist() == [1.0, 1.0, 2.0]
    found = compare(Results.of(inputs, ours, torch.tensor([-1.0, 1.0, 2.0])))
    assert found.sound
    assert found.explained == {"balanced votes": 1}
    assert not compare(Results.of(inputs, ours, torch.tensor([1.0, 1.0, -1.0]))).sound


def test_angles_may_be_a_little_off_and_no_more() -> None:
    inputs = inputs_of("slerp", (normal(0), normal(1)), ({},), t=0.3)
    ours = merged(inputs)
    found = compare(Results.of(inputs, ours, ours * (1 + 1e-4)))
    assert found.sound
    assert set(found.explained) == {"float32 angles"}
    assert not compare(Results.of(inputs, ours, ours * 1.01)).sound
    assert not compare(Results.of(inputs, ours * (1 + 1e-4), ours)).sound


def test_scores_choose_between_the_two_models_only() -> None:
    inputs = inputs_of("arcee_fusion", (normal(0), normal(0) + 0.1 * normal(1)), ({},))
    ours = merged(inputs)
    theirs = ours.clone()
    theirs[5] = inputs.tensors[1][5]
    found = compare(Results.of(inputs, ours, theirs))
    assert found.sound
    assert set(found.explained) == {"float32 scores"}
    theirs[5, 0] = 0.0
    assert not compare(Results.of(inputs, ours, theirs)).sound


@pytest.mark.parametrize("name", [*DIFFERENCES, *REASONS])
def test_every_difference_is_described(name: str) -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    section = text.partition("\n## Where results differ from mergekit\n")[2].partition("\n## ")[0]
    assert f"**{name.capitalize()}.**" in section


def test_cases_are_told_apart_by_their_names() -> None:
    found = cases()
    assert len(set(map(str, found))) == len(found)
    assert len({case.method for case in found}) == 20


STAND_IN = """
import mergeloom, sys
from pathlib import Path
from safetensors.torch import load_file, save_file

def run_merge(config, output, options):
    mergeloom.merge(config, output, threads=1)
    for path in Path(output).glob("*.safetensors"):
        tensors = load_file(path)
        tensors["model.norm.weight"] = tensors["model.norm.weight"] * FACTOR
        save_file(tensors, path)
"""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment in which a package called mergekit is mergeloom, but for one factor."""
    package = tmp_path / "packages" / "mergekit"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "config.py").write_text(
        "class MergeConfiguration:\n    model_validate = staticmethod(dict)\n"
    )
    (package / "options.py").write_text("def MergeOptions(**given):\n    return given\n")
    programs = tmp_path / "environment" / "bin"
    programs.mkdir(parents=True)
    (programs / "mergekit-yaml").touch()
    python = programs / "python"
    paths = f"{package.parent}:{ROOT}"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={paths} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return programs.parent


@pytest.mark.parametrize(("factor", "status"), [("1.0", 0), ("1.001", 1)])
def test_a_run_passes_only_if_every_difference_is_explained(
    environment: Path, tmp_path: Path, factor: str, status: int
) -> None:
    program = STAND_IN.replace("FACTOR", factor)
    (tmp_path / "packages" / "mergekit" / "merge.py").write_text(program)
    command = [sys.executable, str(ROOT / "scripts" / "run"), "conformance", str(environment)]
    command += ["--only", "tied linear weight", "--what", "results", "--json", str(tmp_path / "j")]
    command += ["--markdown", str(tmp_path / "page.md")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    (found,) = json.loads((tmp_path / "j").read_text())["results"]
    assert found["case"] == "tied linear weight=[0.5,0.3,0.4]"
    assert found["sound"] is (status == 0)
    wrong = [name for name, each in found["tensors"].items() if each["units"] > 4]
    assert wrong == ([] if status == 0 else ["model.norm.weight"])
    assert ("! tied linear" in done.stdout) is (status == 1)
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert f"This run {'did not pass' if status else 'passed'}." in " ".join(page.split())
    assert "\n| `linear` | 1 | " in page


def test_an_invalid_environment_is_an_error_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "run"), "conformance", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "has no bin/mergekit-yaml: name an environment" in done.stderr
