"""Outputs in codes: what transformers reads of them, and what does not depend on budgets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mergeloom
from mergeloom.engine.base.errors import ConfigError
from mergeloom.planners.output.quantised import SCHEMES
from mergeloom.report.terminal.console import text_of
from mergeloom.report.terminal.run import render_outcome

transformers = pytest.importorskip("transformers", reason="writes the inputs, reads the outputs")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two siblings; some matrices are no whole blocks of 128, rows of zeros are among them."""
    folder = tmp_path_factory.mktemp("models")
    config = transformers.LlamaConfig(
        hidden_size=256,
        intermediate_size=416,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
    )
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config).bfloat16()
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[3:5] = 0
        model.save_pretrained(folder / str(seed))
        found.append(folder / str(seed))
    return found


def merging(models: list[Path], **more: Any) -> dict[str, Any]:
    entries = [{"model": str(path), "parameters": {"weight": 0.5}} for path in models]
    return {"merge_method": "linear", "models": entries, "dtype": "bfloat16", **more}


def read(folder: Path) -> dict[str, torch.Tensor]:
    """The weights as transformers has them, in float32."""
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    how: dict[str, Any] = {}
    if settings["quant_method"] == "fp8":
        how["quantization_config"] = transformers.FineGrainedFP8Config(dequantize=True)
    else:
        how["quantization_config"] = transformers.CompressedTensorsConfig(run_compressed=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map="cpu", **how
    )
    return {name: tensor.float() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", SCHEMES)
def test_transformers_reads_what_was_merged(kind: str, models: list[Path], tmp_path: Path) -> None:
    mergeloom.merge(merging(models, out_dtype="float32"), tmp_path / "dense")
    config = merging(models, quantize=kind)
    outcome = mergeloom.merge(config, tmp_path / "out", ram="2GiB", threads=2)
    dense = load_file(tmp_path / "dense" / "model.safetensors")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    ours = {"merge_method": "passthrough", "models": [str(tmp_path / "out")], "dtype": "float32"}
    mergeloom.merge(ours, tmp_path / "values")
    values = load_file(tmp_path / "values" / "model.safetensors")
    found = read(tmp_path / "out")
    assert values.keys() == dense.keys()
    worst = {"mxfp4": 0.15, "int8": 0.01}.get(kind, 0.035)
    for name, value in values.items():
        close = {"rtol": 1e-2, "atol": 1e-4} if kind == "mxfp4" else {"rtol": 8e-3, "atol": 1e-6}
        torch.testing.assert_close(found[name], value, **close, msg=name)
        error = float((value - dense[name]).norm() / dense[name].norm())
        assert error < (worst if "proj" in name else 4e-3), name
        if "proj" not in name or (kind == "fp8_block" and 416 in value.shape):
            assert stored[name].dtype == torch.bfloat16
        else:
            assert name not in stored or stored[name].element_size() == 1
    smallest = mergeloom.plan(config, ram="2GiB").schedule.minimum_bytes
    tight = mergeloom.merge(config, tmp_path / "tight", ram=smallest, threads=1)
    again = (tmp_path / "tight" / "model.safetensors").read_bytes()
    assert again == (tmp_path / "out" / "model.safetensors").read_bytes()
    errors = {each.tensor: each.error for each in outcome.report.coding_errors}
    assert errors == {each.tensor: each.error for each in tight.report.coding_errors}
    coded = {name for name in stored if name.endswith(SCHEMES[kind].names[0])}
    assert errors.keys() == {name for name in coded if stored[name].element_size() == 1}
    for name, error in errors.items():
        stem = name.removesuffix(SCHEMES[kind].names[0])
        computed, written = (each[stem + "weight"].double() for each in (dense, values))
        expected = float((written - computed).norm() / computed.norm())
        assert error == pytest.approx(expected, rel=1e-6), name
    worst = outcome.report.coding_errors[0]
    assert f"the largest: {worst.tensor} {worst.error:.2%}" in text_of(
        render_outcome(outcome.report)
    )
    assert mergeloom.merge(config, tmp_path / "out").report.coding_errors == tuple(
        outcome.report.coding_errors
    )


@pytest.mark.parametrize("kind", SCHEMES)
def test_untouched_codes_are_copied(kind: str, models: list[Path], tmp_path: Path) -> None:
    mergeloom.merge(merging(models, quantize=kind), tmp_path / "a")
    copy = {"merge_method": "passthrough", "models": [str(tmp_path / "a")], "quantize": "same"}
    mergeloom.merge(copy, tmp_path / "b")
    one, other = (load_file(tmp_path / each / "model.safetensors") for each in ("a", "b"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[n].view(torch.uint8), other[n].view(torch.uint8)) for n in one)
    settings = [json.loads((tmp_path / n / "config.json").read_text()) for n in ("a", "b")]
    assert settings[0]["quantization_config"] == settings[1]["quantization_config"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"quantize": "int3"}, "'quantize' is 'int3': it may be same, fp8_block, fp8, int8, mxfp4"),
        ({"quantize": "same"}, "no input is in codes"),
    ],
)
def test_what_cannot_be_written(more: dict[str, Any], says: str, models: list[Path]) -> None:
    with pytest.raises(ConfigError, match=says):
        mergeloom.plan(merging(models, **more))


def test_nan_makes_its_block_nan(models: list[Path], tmp_path: Path) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(models[0])
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[7, 5] = float("nan")
    model.save_pretrained(tmp_path / "a")
    outcome = mergeloom.merge(merging([tmp_path / "a"], quantize="int8"), tmp_path / "out")
    scales = load_file(tmp_path / "out" / "model.safetensors")
    broken = scales["model.layers.0.mlp.down_proj.weight_scale"].isnan().flatten().nonzero()
    assert broken.tolist() == [[7]]
    assert outcome is not None
