"""Quantised weights, merged by value: against what the formats' own libraries read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mergeloom
from mergeloom.engine.base.errors import BudgetError, CheckpointError
from mergeloom.planners.models.quantised_weights import without_quantisation
from tests.planners.models.quantised_files import (
    CONFIG,
    FORMATS,
    PLAIN_ONLY,
    bits_and_bytes,
    plain,
    quantised,
    weights,
)

ROOT = Path(__file__).parents[3]
PACKED = Path(__file__).parent / "packed"


@pytest.mark.parametrize("kind", FORMATS)
def test_dequantised_values_agree_with_the_packages_that_wrote_them(
    kind: str, tmp_path: Path
) -> None:
    values = quantised(kind, tmp_path / "a", seed=1)
    config = {
        "merge_method": "passthrough",
        "models": [{"model": str(tmp_path / "a")}],
        "dtype": "float32",
    }
    mergeloom.merge(config, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == values.keys()
    for name, value in values.items():
        torch.testing.assert_close(found[name].double(), value, rtol=3e-7, atol=1e-12, msg=name)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in written


@pytest.mark.parametrize("file", sorted(PACKED.glob("*.safetensors")), ids=lambda file: file.stem)
def test_files_of_gptqmodel_autoround_and_autoawq_have_their_values(
    file: Path, tmp_path: Path
) -> None:
    """Rows of one layer as GPTQModel 7.7 and AutoRound 0.16 wrote them (for AWQ too), beside the
    values that they, or AutoAWQ 0.2.9, read again: ``levels`` are those over their scales."""
    found = load_file(file)
    with safe_open(file, "pt") as opened:
        settings = json.loads(opened.metadata()["quantization_config"])
    levels, scales = found.pop("levels"), found["scales"].float()
    groups = found.get("g_idx", torch.arange(levels.shape[1]) // settings["group_size"])
    module = "model.layers.1.self_attn.k_proj."
    plain = {name: t for name, t in weights(1).items() if name != f"{module}weight"}
    (tmp_path / "a").mkdir()
    packed = {module + part: tensor for part, tensor in found.items()}
    save_file(plain | packed, tmp_path / "a" / "model.safetensors")
    config = CONFIG | {"quantization_config": settings}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    merge = {"merge_method": "passthrough", "models": [str(tmp_path / "a")], "dtype": "float32"}
    mergeloom.merge(merge, tmp_path / "out")
    values = load_file(tmp_path / "out" / "model.safetensors")[f"{module}weight"]
    assert torch.equal(values, levels * scales[groups.long()].T)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in PLAIN_ONLY])
def test_codes_and_plain_weights_are_merged_in_any_budget(kind: str, tmp_path: Path) -> None:
    first = quantised(kind, tmp_path / "a", seed=1)
    second = plain(tmp_path / "b", seed=2)
    config = {
        "merge_method": "linear",
        "models": [
            {"model": str(tmp_path / name), "parameters": {"weight": weight}}
            for name, weight in (("a", 0.25), ("b", 0.75))
        ],
        "dtype": "bfloat16",
    }
    mergeloom.merge(config, tmp_path / "out", ram="2GiB", threads=2)
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name in first:
        wanted = 0.25 * first[name] + 0.75 * second[name]
        torch.testing.assert_close(found[name].double(), wanted, rtol=4e-3, atol=1e-6, msg=name)
    with pytest.raises(BudgetError) as error:
        mergeloom.merge(config, tmp_path / "tight", ram="1MiB", threads=1)
    smallest = error.value.remedy.split(" are enough")[0]  # of this process, as large as it is now
    mergeloom.merge(config, tmp_path / "tight", ram=smallest, threads=1)
    again = (tmp_path / "tight" / "model.safetensors").read_bytes()
    assert again == (tmp_path / "out" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["fp8 blocks", "nvfp4", "gptq", "nf4"])
def test_merging_codes_does_not_import_torch(kind: str, tmp_path: Path) -> None:
    quantised(kind, tmp_path / "a", seed=1)
    plain(tmp_path / "b", seed=2)
    merge = {
        "merge_method": "task_arithmetic",
        "base_model": str(tmp_path / "b"),
        "models": [{"model": str(tmp_path / "a"), "parameters": {"weight": 0.5}}],
    }
    code = (
        "import sys, mergeloom\n"
        f"mergeloom.merge({merge!r}, {str(tmp_path / 'out')!r})\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


def test_experts_of_gpt_oss_agree_with_transformers(tmp_path: Path) -> None:
    """Against the decoder of transformers: transposed, gate and up interleaved as they are; also
    with an adapter of them."""
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4", reason="the format's own code")
    torch.manual_seed(0)
    experts, out, inside = 3, 64, 96
    blocks = torch.randint(0, 256, (experts, out, inside // 32, 16), dtype=torch.uint8)
    scales = torch.randint(118, 130, (experts, out, inside // 32), dtype=torch.uint8)
    prefix = "model.layers.0.mlp.experts."
    stored = {
        f"{prefix}gate_up_proj_blocks": blocks,
        f"{prefix}gate_up_proj_scales": scales,
        f"{prefix}gate_up_proj_bias": torch.randn(experts, out).bfloat16(),
        "model.layers.0.input_layernorm.weight": torch.ones(inside).bfloat16(),
        "model.layers.0.self_attn.sinks": torch.ones(4).bfloat16(),
        "model.embed_tokens.weight": torch.randn(8, inside).bfloat16(),
    }
    expected = mxfp4.convert_moe_packed_tensors(blocks.clone(), scales.clone(), dtype=torch.float32)
    (tmp_path / "a").mkdir()
    save_file(stored, tmp_path / "a" / "model.safetensors")
    config = {
        "model_type": "gpt_oss",
        "num_hidden_layers": 1,
        "tie_word_embeddings": True,
        "vocab_size": 8,
        "layer_types": ["sliding_attention"],
        "quantization_config": {"quant_method": "mxfp4"},
    }
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    merge = {
        "merge_method": "passthrough",
        "models": [{"model": str(tmp_path / "a")}],
        "dtype": "float32",
    }
    mergeloom.merge(merge, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found[f"{prefix}gate_up_proj"], expected)
    assert found.keys() == {n.replace("_blocks", "") for n in stored if "_scales" not in n}

    rank, own = 2, f"base_model.model.{prefix}"
    a, b = torch.randn(rank * experts, inside), torch.randn(out, rank * experts)
    (tmp_path / "adapter").mkdir()
    save_file(
        {f"{own}lora_A.weight": a, f"{own}lora_B.weight": b},
        tmp_path / "adapter" / "adapter_model.safetensors",
    )
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    about |= {"target_parameters": ["mlp.experts.gate_up_proj"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(about))
    merge["models"] = [{"model": f"{tmp_path}/a+{tmp_path}/adapter"}]
    mergeloom.merge(merge, tmp_path / "adapted")
    adapted = load_file(tmp_path / "adapted" / "model.safetensors")[f"{prefix}gate_up_proj"]
    factors = b.reshape(out, rank, experts), a.reshape(experts, rank, inside)
    change = torch.einsum("ore,eri->eio", *factors)  # as PEFT's ParamWrapper.get_delta_weight
    torch.testing.assert_close(adapted, expected + change)


def test_scales_count_as_bytes_read_and_unused_tensors_are_named(tmp_path: Path) -> None:
    quantised("fp8 channels", tmp_path / "a", seed=1)
    merge = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "a")}]}
    planned = mergeloom.plan(merge)
    size = (tmp_path / "a" / "model.safetensors").stat().st_size
    scales = 14 * 4  # one number beside each of seven matrices in two layers
    header = size - scales - planned.schedule.read_bytes
    assert 0 < header < 8192
    left = [name for item in planned.plan.unused for name in item.names]
    assert len(left) == 14
    assert all(name.endswith("input_scale") for name in left)


@pytest.mark.parametrize("shape", [(160, 72), (9, 10), (3, 7, 128)])
def test_bitsandbytes_blocks_may_cross_rows_and_be_ragged(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    """bitsandbytes' blocks may begin anywhere in a row, and the last one may be ragged."""
    parts, value = bits_and_bytes("nf4")(torch.randn(shape))
    tensors = {f"model.layers.0.mlp.up_proj.{part}": tensor for part, tensor in parts.items()}
    others = {name: tensor for name, tensor in weights(1).items() if "layers.1" not in name}
    others.pop("model.layers.0.mlp.up_proj.weight")
    (tmp_path / "a").mkdir()
    save_file(tensors | others, tmp_path / "a" / "model.safetensors")
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config = CONFIG | {"num_hidden_layers": 1, "quantization_config": settings}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    merge = {"merge_method": "passthrough", "models": [str(tmp_path / "a")], "dtype": "float32"}
    mergeloom.merge(merge, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found["model.layers.0.mlp.up_proj.weight"].double(), value)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"bits": 3}, "quantised .by gptq, in 3 bits"),
        ({"checkpoint_format": "marlin"}, "quantised .by gptq, in the format 'marlin'"),
        ({"quant_method": "awq", "version": "gemv"}, "quantised .by awq, in the version 'gemv'"),
        ({"group_size": 32}, "256 inputs in groups of 32, and 4 groups of scales"),
        ({"bits": 8}, "128 inputs and groups 256|128 inputs in groups of 64, and 4 groups"),
        ({"quant_method": "hqq"}, "quantised .by hqq"),
        (
            {"quant_method": "auto-round", "packing_format": "auto_round"},
            "by auto-round, in the packing 'auto_round'",
        ),
    ],
)
def test_unsupported_settings_of_gptq_are_refused(
    changed: dict[str, Any], says: str, tmp_path: Path
) -> None:
    quantised("gptq", tmp_path / "a", seed=1)
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changed
    path.write_text(json.dumps(config))
    merge = {"merge_method": "passthrough", "models": [str(tmp_path / "a")]}
    with pytest.raises(CheckpointError, match=says):
        mergeloom.plan(merge)


@pytest.mark.parametrize(
    ("part", "tensor", "says"),
    [
        ("weight.quant_state.bitsandbytes__nf4", b"[1]", "its state is not a JSON object"),
        ("weight.quant_state.bitsandbytes__nf4", b'{"shape": [160, 255]}', "has no blocksize"),
        ("weight.quant_state.bitsandbytes__nf4", b"{", "its state is not JSON"),
        ("weight.absmax", bytes(7), "need side inputs of 16, 640"),
        ("weight.nested_absmax", bytes(7), "tables of uint8"),
        ("SCB", bytes(7), "do not match the rows of an int8 weight"),
    ],
)
def test_invalid_states_of_bitsandbytes_are_refused(
    part: str, tensor: bytes, says: str, tmp_path: Path
) -> None:
    quantised("nf4", tmp_path / "a", seed=1)
    file = tmp_path / "a" / "model.safetensors"
    name = f"model.layers.1.mlp.up_proj.{part}"
    save_file(load_file(file) | {name: torch.tensor(list(tensor), dtype=torch.uint8)}, file)
    merge = {"merge_method": "passthrough", "models": [str(tmp_path / "a")]}
    with pytest.raises(CheckpointError, match=rf"up_proj\.(weight|SCB).*' and its scales .*{says}"):
        mergeloom.plan(merge)


def test_unknown_quantisations_are_refused(tmp_path: Path) -> None:
    quantised("int8 channels", tmp_path / "a", seed=1)
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"quantization_config": {"quant_method": "torchao"}}))
    merge = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "a")}]}
    with pytest.raises(CheckpointError, match="by torchao"):
        mergeloom.plan(merge)


def test_scales_of_the_wrong_shape_are_refused(tmp_path: Path) -> None:
    quantised("fp8 blocks", tmp_path / "a", seed=1)
    file = tmp_path / "a" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight_scale_inv"
    save_file(tensors | {name: torch.ones(7, 5)}, file)
    merge = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "a")}]}
    with pytest.raises(CheckpointError, match=r"up_proj\.weight' and its scales do not match"):
        mergeloom.plan(merge)


def two_widths(folder: Path) -> dict[str, torch.Tensor]:
    """A checkpoint with codes of 4 and of 8 bits, as recipes for sensitive layers make it; the
    values of its weights."""
    values = quantised("int4 groups", folder, seed=1)
    wider = quantised("int8 groups", folder.with_name("wider"), seed=1)
    file, other = (each / "model.safetensors" for each in (folder, folder.with_name("wider")))
    down = {name: value for name, value in load_file(other).items() if "down_proj" in name}
    save_file(load_file(file) | down, file)
    config = json.loads((folder / "config.json").read_text())
    groups = config["quantization_config"]["config_groups"]
    groups["group_1"] = {"weights": {"num_bits": 8, "group_size": 32}, "targets": ["re:.*down.*"]}
    (folder / "config.json").write_text(json.dumps(config))
    return {name: (wider if "down_proj" in name else values)[name] for name in values}


def test_codes_of_two_widths_are_told_apart_by_the_shapes_of_their_weights(tmp_path: Path) -> None:
    values = two_widths(tmp_path / "a")
    merge = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "a")}]}
    mergeloom.merge({**merge, "dtype": "float32"}, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in values.items():
        torch.testing.assert_close(found[name].double(), value, rtol=3e-7, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (torch.tensor([160, 512]), "words are not 512 columns of 4 or 8 bits in whole words"),
        (torch.tensor([160, 252]), "words are not 252 columns of 4 or 8 bits in whole words"),
        (torch.ones(2), "its weight_shape is not two integers, but F32"),
        (None, "it has no weight_shape, and the configuration no one number of bits"),
    ],
)
def test_codes_of_an_unknown_width_are_refused(
    shape: torch.Tensor | None, words: str, tmp_path: Path
) -> None:
    two_widths(tmp_path / "a")
    file, name = tmp_path / "a" / "model.safetensors", "model.layers.0.mlp.up_proj.weight_shape"
    tensors = {**load_file(file), name: shape}
    save_file({each: value for each, value in tensors.items() if value is not None}, file)
    with pytest.raises(CheckpointError, match=f"{words}: merge the original weights"):
        mergeloom.plan({"merge_method": "passthrough", "models": [{"model": str(tmp_path / "a")}]})


def test_complex_numbers_are_copied_and_named(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        plain(tmp_path / name, seed)
        file = tmp_path / name / "model.safetensors"
        angles = torch.polar(torch.ones(4, 3), torch.rand(4, 3))
        save_file(load_file(file) | {"model.freqs_cis": angles}, file)
    entries = [{"model": str(tmp_path / n), "parameters": {"weight": 0.5}} for n in "ab"]
    merge = {"merge_method": "linear", "models": entries, "dtype": "bfloat16"}
    said = "'model.freqs_cis' is not merged, because it holds complex numbers"
    with pytest.warns(mergeloom.LoomWarning, match=said):
        mergeloom.merge(merge, tmp_path / "out")
    one, out = (load_file(tmp_path / n / "model.safetensors") for n in ("a", "out"))
    assert torch.equal(out["model.freqs_cis"], one["model.freqs_cis"])


def test_settings_of_quantisation_are_removed_from_the_configuration() -> None:
    inner = {"quantization_config": {"quant_method": "fp8"}, "hidden_size": 8}
    assert without_quantisation({"text_config": inner, "expert_dtype": "fp4", "a": 1}) == {
        "text_config": {"hidden_size": 8},
        "a": 1,
    }
