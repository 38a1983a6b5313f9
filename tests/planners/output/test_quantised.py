"""Outputs in codes: what transformers reads of them, and what does not depend on budgets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mergeloom
from mergeloom.engine.base.dtypes import BF16
from mergeloom.engine.base.errors import ConfigError
from mergeloom.engine.graph.graph import GraphBuilder
from mergeloom.engine.graph.kernel import Copy, Kernel
from mergeloom.engine.storage.memory_source import MemorySource
from mergeloom.methods import registry
from mergeloom.methods.declare import Method, TensorMerge
from mergeloom.planners.models.model import OutputTensor
from mergeloom.planners.output.linear_weights import choose_quantised
from mergeloom.planners.output.schemes import SCHEMES
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
    if settings["quant_method"] == "fp8":
        return by_blocks(load_file(folder / "model.safetensors"), settings["weight_block_size"])
    how = transformers.CompressedTensorsConfig(run_compressed=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map="cpu", quantization_config=how
    )
    return {name: tensor.float() for name, tensor in model.state_dict().items()}


def by_blocks(stored: dict[str, torch.Tensor], size: list[int]) -> dict[str, torch.Tensor]:
    """The weights as transformers' fp8 layers have them; its 'dequantize' has no ragged blocks."""
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    found = {name: each.float() for name, each in stored.items() if "scale_inv" not in name}
    for name in found:
        scale = stored.get(f"{name}_scale_inv")
        if scale is not None:
            found[name] = _dequantize_fp8_weight(stored[name], scale, size, torch.float32)
    return found


@pytest.mark.parametrize("kind", SCHEMES)
def test_transformers_reads_the_quantised_output(
    kind: str, models: list[Path], tmp_path: Path
) -> None:
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
        if "proj" not in name:
            assert stored[name].dtype == torch.bfloat16
        else:
            assert name not in stored or stored[name].element_size() == 1
    smallest = mergeloom.plan(config, ram="2GiB").schedule.minimum_bytes
    tight = mergeloom.merge(config, tmp_path / "tight", ram=smallest, threads=1)
    again = (tmp_path / "tight" / "model.safetensors").read_bytes()
    assert again == (tmp_path / "out" / "model.safetensors").read_bytes()
    errors = {each.tensor: each.error for each in outcome.report.coding_errors}
    assert errors == {each.tensor: each.error for each in tight.report.coding_errors}
    assert errors.keys() == {name for name in dense if "proj" in name}
    for name, error in errors.items():
        computed, written = (each[name].double() for each in (dense, values))
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
        (
            {"quantize": "int3"},
            "'quantize' is 'int3': it must be one of same, fp8_block, fp8, int8, mxfp4",
        ),
        ({"quantize": "same"}, "no input is quantised"),
    ],
)
def test_formats_that_cannot_be_written_are_refused(
    more: dict[str, Any], says: str, models: list[Path]
) -> None:
    with pytest.raises(ConfigError, match=says):
        mergeloom.plan(merging(models, **more))


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two siblings whose experts lie in one tensor, as in Qwen3.5's own files."""
    folder = tmp_path_factory.mktemp("experts")
    config = transformers.Qwen3MoeConfig(
        hidden_size=128,
        moe_intermediate_size=128,
        num_experts=2,
        num_experts_per_tok=1,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        vocab_size=96,
    )
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = transformers.Qwen3MoeForCausalLM(config).bfloat16()
        with torch.no_grad():
            for each in model.model.layers[0].mlp.experts.parameters():
                each.normal_(std=0.02)
        model.save_pretrained(folder / str(seed))
        weights = {name: each.clone() for name, each in model.state_dict().items()}
        save_file(weights, folder / str(seed) / "model.safetensors", {"format": "pt"})
        found.append(folder / str(seed))
    return found


@pytest.mark.parametrize("kind", ["fp8_block", "fp8"])
def test_experts_in_one_tensor_are_written_one_by_one(
    kind: str, experts: list[Path], tmp_path: Path
) -> None:
    mergeloom.merge(merging(experts, out_dtype="float32"), tmp_path / "dense")
    outcome = mergeloom.merge(merging(experts, quantize=kind), tmp_path / "out")
    dense = load_file(tmp_path / "dense" / "model.safetensors")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    first = stored["model.layers.0.mlp.experts.1.gate_proj.weight"]
    assert first.shape == (128, 128)
    assert first.element_size() == 1
    how: Any = transformers.CompressedTensorsConfig(run_compressed=False)
    if kind == "fp8_block":
        how = transformers.FineGrainedFP8Config(dequantize=True)
    found = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, device_map="cpu", quantization_config=how
    ).state_dict()
    errors = {each.tensor: each.error for each in outcome.report.coding_errors}
    for last in ("gate_up_proj", "down_proj"):
        name = f"model.layers.0.mlp.experts.{last}"
        error = float((found[name] - dense[name]).norm() / dense[name].norm())
        assert errors[name] == pytest.approx(error, rel=0.02 if kind == "fp8" else 1e-5)
    assert mergeloom.verify(tmp_path / "out").sound
    if kind == "fp8_block":
        fused = fuse(stored, "model.layers.0.mlp.experts.", 2)
        save_file(fused, tmp_path / "out" / "model.safetensors", {"format": "pt"})
        copied = {"merge_method": "passthrough", "models": [str(tmp_path / "out")]}
        mergeloom.merge({**copied, "dtype": "float32"}, tmp_path / "values")
        values = load_file(tmp_path / "values" / "model.safetensors")
        for last in ("gate_up_proj", "down_proj"):
            name = f"model.layers.0.mlp.experts.{last}"
            torch.testing.assert_close(values[name], found[name], msg=name)


def fuse(stored: dict[str, torch.Tensor], module: str, count: int) -> dict[str, torch.Tensor]:
    """Codes of experts as transformers' modules hold them."""
    rest = {name: each for name, each in stored.items() if not name.startswith(module)}
    for codes, ending in (("weight", ""), ("weight_scale_inv", "_scale_inv")):

        def joined(*parts: str, codes: str = codes) -> torch.Tensor:
            own = [[stored[f"{module}{n}.{p}.{codes}"] for p in parts] for n in range(count)]
            return torch.stack([torch.cat([e.view(torch.uint8) for e in each]) for each in own])

        kind = torch.float8_e4m3fn if codes == "weight" else torch.float32
        rest[f"{module}gate_up_proj{ending}"] = joined("gate_proj", "up_proj").view(kind)
        rest[f"{module}down_proj{ending}"] = joined("down_proj").view(kind)
    return rest


def test_gpt_oss_keeps_its_own_format(tmp_path: Path) -> None:
    config = transformers.GptOssConfig(
        hidden_size=64,
        intermediate_size=32,
        num_local_experts=2,
        num_experts_per_tok=1,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=96,
    )
    torch.manual_seed(1)
    model = transformers.GptOssForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path / "a")
    copied = {"merge_method": "passthrough", "models": [str(tmp_path / "a")]}
    outcome = mergeloom.merge({**copied, "quantize": "mxfp4"}, tmp_path / "b")
    found = transformers.AutoModelForCausalLM.from_pretrained(
        *(tmp_path / "b",),
        dtype=torch.float32,
        quantization_config=transformers.Mxfp4Config(dequantize=True),
    ).state_dict()
    dense = model.state_dict()
    assert found.keys() == dense.keys()
    errors = {each.tensor: each.error for each in outcome.report.coding_errors}
    assert errors.keys() == {name for name in dense if name.endswith(("up_proj", "down_proj"))}
    for name, value in dense.items():
        difference = (found[name].float() - value.float()).norm()
        error = float(difference / value.float().norm().clamp_min(1e-9))
        assert error == pytest.approx(errors.get(name, 0.0), rel=1e-5), name
    copied["models"] = [str(tmp_path / "b")]
    mergeloom.merge({**copied, "quantize": "same"}, tmp_path / "c")
    files = [(tmp_path / each / "model.safetensors") for each in ("b", "c")]
    one, other = map(load_file, files)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[n].view(torch.uint8), other[n].view(torch.uint8)) for n in one)


def test_ragged_blocks_are_warned_about(models: list[Path]) -> None:
    planned = mergeloom.plan(merging(models, quantize="fp8_block"))
    (said,) = [str(each) for each in planned.findings if each.code == "ragged-blocks"]
    assert "transformers' option 'dequantize' reads wrongly or refuses" in said
    assert "'model.layers.*.mlp.up_proj.weight' (416x256)" in said


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"up": (2, 256, 512), "down": (2, 256, 256)}, "stored as (experts, in, out)"),
        ({"up": (2, 192, 128), "down": (2, 128, 96)}, "not multiples of 128"),
        (
            {"up": (2, 256, 256), "down": (2, 250, 128)},
            "which of its dimensions is the input",
        ),
    ],
)
def test_experts_without_a_known_format_are_not_quantised(
    names: dict[str, tuple[int, ...]], says: str
) -> None:
    module = "model.layers.0.mlp.experts"
    builder, source = GraphBuilder(), MemorySource("a", b"")
    tensors = {}
    for last, shape in names.items():
        name = f"{module}.{'gate_up_proj' if last == 'up' else 'down_proj'}"
        load = builder.load(source, 0, BF16, shape, name)
        tensors[name] = OutputTensor(name, builder.merge([load], Copy(), name), BF16)
    division = choose_quantised(tensors, {}, SCHEMES["fp8_block"])
    assert not division.quantised
    assert all(says in why for why in division.unquantised.values())


class _ByTorch(Kernel):
    """As kernels of other packages are: it names no words."""


class _Foreign(Method):
    name = "foreign"
    summary = formula = reference = "of another package"

    def kernel(self, merge: TensorMerge) -> Kernel:
        return _ByTorch()


def test_methods_that_compute_by_torch_are_refused(models: list[Path]) -> None:
    mergeloom.register_method(_Foreign)
    try:
        config = {**merging(models, quantize="fp8"), "merge_method": "foreign"}
        config["models"] = [str(path) for path in models]
        with pytest.raises(ConfigError) as raised:
            mergeloom.plan(config)
    finally:
        registry.unregister("foreign")
    said = str(raised.value)
    assert "is computed by torch (_ByTorch), and codes are written by machine code" in said
    assert "merge without 'quantize', then quantise the output with a 'passthrough' merge" in said


def test_a_nan_makes_its_block_nan(models: list[Path], tmp_path: Path) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(models[0])
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[7, 5] = float("nan")
    model.save_pretrained(tmp_path / "a")
    outcome = mergeloom.merge(merging([tmp_path / "a"], quantize="int8"), tmp_path / "out")
    scales = load_file(tmp_path / "out" / "model.safetensors")
    broken = scales["model.layers.0.mlp.down_proj.weight_scale"].isnan().flatten().nonzero()
    assert broken.tolist() == [[7]]
    assert outcome is not None


def test_experts_in_int8_are_warned_about(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    config = transformers.MixtralConfig(**sizes, **heads)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "a")
    for kind, told in (("int8", 1), ("fp8", 0)):
        planned = mergeloom.plan(merging([tmp_path / "a"], quantize=kind))
        found = [each.cause for each in planned.findings if each.code == "no-reader"]
        assert len(found) == told
        assert all("experts.*.w1.weight' (an expert in int8)" in cause for cause in found)
