"""Random choices from YAML to files: recorded, made by the seed, the same when resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import mergeloom
from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.arithmetic import Arithmetic
from mergeloom.engine.hardware import process as machine
from mergeloom.engine.hardware.spec import Machine
from mergeloom.report.terminal.console import text_of
from mergeloom.report.terminal.plan import render_plan
from tests.planners.support import load_tensors, write_checkpoint

RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
CONFIG = {"num_hidden_layers": 2, "tie_word_embeddings": True}
NAMES = [f"model.layers.{layer}.{part}.weight" for layer in range(2) for part in ("a", "b")]
SHAPE = (1100, 1000)  # three grains each


class Stop(Exception):
    """Raised to interrupt a run."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of zeros and two fine-tunes of ones, so that a result shows what was kept."""
    folder = tmp_path_factory.mktemp("models")
    for model in ("base", "one", "two"):
        value = float(model != "base")
        tensors = {name: torch.full(SHAPE, value, dtype=torch.bfloat16) for name in NAMES}
        write_checkpoint(folder / model, tensors, CONFIG)
    return folder


def config_of(method: str, models: Path, tunes: tuple[str, ...] = ("one", "two")) -> dict[str, Any]:
    epsilon = {"epsilon": 0.0} if method.startswith("della") else {}
    return {
        "merge_method": method,
        "base_model": str(models / "base"),
        "models": [
            {
                "model": str(models / name),
                "parameters": {"weight": float(10**number), "density": 0.3, **epsilon},
            }
            for number, name in enumerate(tunes)
        ],
        "parameters": {"rescale": False, "normalize": False},
    }


def equal(one: Path, other: Path) -> bool:
    a, b = load_tensors(one), load_tensors(other)
    assert a.keys() == b.keys() == set(NAMES)
    return all(torch.equal(a[name], b[name]) for name in NAMES)


@pytest.mark.parametrize("method", RANDOM)
def test_the_seed_is_recorded_and_chooses_the_draw(
    method: str, models: Path, tmp_path: Path
) -> None:
    config = config_of(method, models)
    for name, seed in (("a", 0), ("b", 0), ("c", 1 << 40)):
        planned = mergeloom.plan(config, seed=seed)
        assert planned.document()["seed"] == seed
        mergeloom.merge(planned, tmp_path / name)
        manifest = json.loads((tmp_path / name / ".mergeloom" / "manifest.json").read_text())
        assert manifest["about"]["seed"] == seed
    assert mergeloom.plan(config).document()["seed"] == 0
    shown = text_of(render_plan(mergeloom.plan(config, seed=23).report))
    assert "23 (another one draws other elements)" in shown
    assert equal(tmp_path / "a", tmp_path / "b")
    assert not equal(tmp_path / "a", tmp_path / "c")
    with pytest.raises(mergeloom.OutputError, match="seed"):
        mergeloom.merge(config, tmp_path / "a", seed=1)


@pytest.mark.parametrize("method", RANDOM)
def test_an_interruption_does_not_change_the_draw(
    method: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def this_machine(
        arithmetic: Arithmetic, torch: Arithmetic, threads: int | None = None
    ) -> Machine:
        return Machine(threads or 2, 300 * MIB, 0, arithmetic, torch)

    def stop(progress: Any) -> None:
        if progress.write_bytes > 2 * math.prod(SHAPE):
            raise Stop

    monkeypatch.setattr(machine, "this_machine", this_machine)
    config = config_of(method, models)
    mergeloom.merge(config, tmp_path / "whole", seed=7, threads=1)
    observer = mergeloom.Observer(progressed=stop)
    with pytest.raises(Stop):
        mergeloom.merge(config, tmp_path / "broken", seed=7, threads=1, observer=observer)
    smallest = mergeloom.plan(config, seed=7).schedule.minimum_bytes
    again = mergeloom.merge(config, tmp_path / "broken", seed=7, ram=smallest, threads=3)
    assert not again.outcome.was_finished
    assert equal(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_draws_for_tensors_and_models_are_independent(
    method: str, models: Path, tmp_path: Path
) -> None:
    """Shares within binomial bounds, in all and in every row; nothing goes with anything else."""
    mergeloom.merge(config_of(method, models), tmp_path / "out")
    merged = load_tensors(tmp_path / "out")
    kept: dict[tuple[str, int], torch.Tensor] = {}
    for name, tensor in merged.items():  # 1 of the first model, 10 of the second
        assert set(tensor.unique().tolist()) == {0.0, 1.0, 10.0, 11.0}
        kept[name, 0] = (tensor % 2 == 1).double() - 0.3
        kept[name, 1] = (tensor >= 10).double() - 0.3
    count, variance = math.prod(SHAPE), 0.3 * 0.7
    for mask in kept.values():
        assert abs(float(mask.mean())) < 5 * math.sqrt(variance / count)
        rows = mask.mean(1) / math.sqrt(variance / SHAPE[1])
        assert float(rows.abs().max()) < 6
        assert abs(float(rows.square().mean()) - 1) < 5 * math.sqrt(2 / SHAPE[0])
    masks = torch.stack(list(kept.values())).flatten(1)
    correlation = masks @ masks.T / (count * variance) - torch.eye(len(masks))
    assert float(correlation.abs().max()) < 6 / math.sqrt(count)
