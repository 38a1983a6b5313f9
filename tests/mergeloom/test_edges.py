"""What is odd about tensors, models and parameters, in every method."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import mergeloom
from mergeloom.engine.base.errors import BudgetError, RunError
from mergeloom.methods import registry
from mergeloom.methods.declare import Base
from mergeloom.methods.reference import evaluate
from scripts.bench.configurations import configuration
from tests.mergeloom.support import method_as_json
from tests.methods.support import assert_close, kernel_of, run, tensor_merge
from tests.planners.support import load_tensors, write_checkpoint

METHODS = [name for name in registry.names() if name != "passthrough"]
ON_BASE = [name for name in METHODS if registry.get(name).base is Base.REQUIRED]
TUNES = ("one", "two", "three")
LAYER = "model.layers.0"
CONFIG = {"num_hidden_layers": 1, "tie_word_embeddings": True}
UNEQUAL = {"allow_different_architectures": True}
"""One of the models lacks a tensor."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and three fine-tunes with scalars, integers, nothing; one lacks a tensor."""
    folder = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        f"{LAYER}.w.weight": (33, 17),
        f"{LAYER}.optional.weight": (19,),
        f"{LAYER}.nothing.weight": (0, 4),
        "model.scale": (),
    }
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for model in ("base", *TUNES):
        step = 0.0 if model == "base" else 0.1
        tensors = {n: t + step * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        if model == "one":
            del tensors[f"{LAYER}.optional.weight"]
        tensors["model.steps"] = torch.tensor(12345678901)
        tensors["model.position_ids"] = torch.arange(9).view(1, 9)
        write_checkpoint(folder / model, tensors, CONFIG)
    return folder


def config_of(method: str, models: Path) -> dict[str, Any]:
    document = method_as_json(method)
    tunes = [models / name for name in TUNES]
    config = configuration(document, models / "base", tunes, 1, everything=True)
    return {**config, "dtype": "float32"}


@pytest.mark.parametrize("method", METHODS)
def test_tensors_of_odd_shapes_and_types_pass_every_method(
    method: str, models: Path, tmp_path: Path
) -> None:
    mergeloom.merge(config_of(method, models), tmp_path / "out", **UNEQUAL)
    merged, base = load_tensors(tmp_path / "out"), load_tensors(models / "base")
    assert merged.keys() == base.keys()
    for name, tensor in merged.items():
        assert tensor.shape == base[name].shape
        assert tensor.dtype == base[name].dtype
        assert bool(tensor.isfinite().all())
        if not tensor.is_floating_point():
            assert torch.equal(tensor, base[name])


@pytest.mark.parametrize("method", ["ties", "task_arithmetic"])
def test_a_tensor_that_one_model_lacks_is_merged_from_the_others(
    method: str, models: Path, tmp_path: Path
) -> None:
    mergeloom.merge(config_of(method, models), tmp_path / "out", **UNEQUAL)
    name = f"{LAYER}.optional.weight"
    inputs = [load_tensors(models / model)[name] for model in ("base", "two", "three")]
    each = {"weight": 0.4} | ({"density": 0.5} if method == "ties" else {})
    answer = evaluate(method, tensor_merge(method, inputs[0].shape, [{}, each, each], 0), inputs)
    assert answer is not None
    assert_close(load_tensors(tmp_path / "out")[name], answer)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("method", ON_BASE)
def test_no_change_gives_the_base(method: str, rescale: bool) -> None:
    """Nothing is divided by norms, squares or counts that are zero, whatever the parameters."""
    shape, found = (40, 11), registry.get(method)
    base = torch.randn(shape)
    given = {"weight": 0.7, "density": 0.5, "gamma": 0.1, "epsilon": 0.2}
    each = {p.name: given[p.name] for p in found.model_parameters}
    settings: dict[str, Any] = {"t": 0.3, "select_topk": 0.5, "filter_wise": rescale}
    settings |= {"rescale": rescale, "normalize": rescale}
    known = {p.name for p in found.settings}
    settings = {name: value for name, value in settings.items() if name in known}
    count = min(found.maximum or 3, 3)
    kernel = kernel_of(method, shape, [{}, *[each] * count], 0, **settings)
    result = run(kernel, [base] * (count + 1))
    if method == "slerp":  # between two equal models, through a straight line
        assert torch.allclose(result, base, rtol=1e-6)
    else:
        assert torch.equal(result, base)


@pytest.mark.parametrize("method", ["nuslerp", "multislerp"])
@pytest.mark.parametrize("settings", [{}, {"nuslerp_flatten": False}])
def test_no_change_on_an_optional_base_gives_the_base(
    method: str, settings: dict[str, Any]
) -> None:
    if method == "multislerp":
        settings = {"normalize_weights": not settings}
    base = torch.randn(40, 11)
    kernel = kernel_of(method, (40, 11), [{}, *[{"weight": 0.7}] * 2], 0, **settings)
    assert torch.equal(run(kernel, [base] * 3), base)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_linear"])
def test_a_tensor_that_overflows_is_an_error_that_names_it(
    method: str, models: Path, tmp_path: Path
) -> None:
    config = {**config_of(method, models), "out_dtype": "float16"}
    for entry in config["models"]:
        entry["parameters"]["weight"] = 1e7
    config["parameters"] = {"normalize": False}
    with pytest.raises(RunError, match=r"'model\.\S+': .* not finite as float16") as caught:
        mergeloom.merge(config, tmp_path / "out", **UNEQUAL)
    assert caught.value.exit_code == 1


def test_infinities_of_an_input_stay_and_are_warned_about(models: Path, tmp_path: Path) -> None:
    name = f"{LAYER}.w.weight"
    for model in ("base", "two"):
        tensors = load_tensors(models / model)
        if model == "two":
            tensors[name][1, 2], tensors[name][3, 4] = float("nan"), float("inf")
        write_checkpoint(tmp_path / model, tensors, CONFIG)
    config = {
        "merge_method": "ties",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / "two"), "parameters": {"weight": 1.0, "density": 0.5}}],
    }
    with pytest.warns(mergeloom.LoomWarning, match="NaN or infinite") as told:
        result = mergeloom.merge(config, tmp_path / "out")
    assert len(told) == 1
    said = f"'{name}' of '{tmp_path / 'two' / 'model.safetensors'}' has 2 values"
    assert str(told[0].message).startswith(said)
    assert [str(each) for each in result.warnings] == [str(told[0].message)]
    broken = ~load_tensors(tmp_path / "out")[name].isfinite()
    assert {tuple(place) for place in broken.nonzero().tolist()} <= {(1, 2), (3, 4)}


@pytest.mark.parametrize("size", [64, 1 << 20])
def test_copied_infinities_are_warned_about(size: int, tmp_path: Path) -> None:
    name, tensors = f"{LAYER}.w.weight", {f"{LAYER}.w.weight": torch.zeros(size).bfloat16()}
    tensors[name][-1], tensors[name][3] = float("-inf"), float("nan")
    write_checkpoint(tmp_path / "a", tensors, CONFIG)
    config = {"merge_method": "passthrough", "models": [str(tmp_path / "a")]}
    with pytest.warns(mergeloom.LoomWarning, match=f"'{name}' of '.*' has 2 values that are NaN"):
        mergeloom.merge(config, tmp_path / "out")
    copied = load_tensors(tmp_path / "out")[name]
    assert torch.equal(copied.view(torch.int16), tensors[name].view(torch.int16))


def headers_only(directory: Path, name: str, shape: tuple[int, ...]) -> Path:
    """A checkpoint of one bfloat16 tensor, of the right length but with a hole for its data."""
    directory.mkdir()
    size = 2 * math.prod(shape)
    header = json.dumps({name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, size]}})
    header += " " * (-len(header) % 8)
    with open(directory / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + size)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory


@pytest.mark.parametrize("method", ["della", "arcee_fusion", "model_stock", "nuslerp"])
def test_a_row_that_is_larger_than_the_budget_is_refused_by_name(
    method: str, tmp_path: Path
) -> None:
    name = f"{LAYER}.w.weight"
    for model in ("base", *TUNES):
        headers_only(tmp_path / model, name, (2, 1 << 27))
    config = config_of(method, tmp_path)
    rows = {"model_stock": {"filter_wise": True}, "nuslerp": {"nuslerp_flatten": False}}
    config["parameters"] = rows.get(method, {})
    with pytest.raises(BudgetError, match=name.replace(".", r"\.")):
        mergeloom.plan(config, ram="1GiB")
    assert mergeloom.plan(config, ram="40GiB").schedule.minimum_bytes > 1 << 30
    elementwise = {**config_of("task_arithmetic", tmp_path)}
    assert mergeloom.plan(elementwise, ram="1GiB").schedule.peak_bytes <= 1 << 30
