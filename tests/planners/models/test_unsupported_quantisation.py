"""Quantised checkpoints are told by their configuration, or by their tensors alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.folder import local
from mergeloom.engine.storage.safetensors import HeaderReader
from mergeloom.planners.models.checkpoint import open_checkpoint
from tests.planners.support import llama, load_tensors, write_checkpoint

LINEAR = "model.layers.0.mlp.up_proj"


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)
    return str(caught.value)


ROTATED = {
    "transform_config": {
        "config_groups": {
            "R4": {
                "type": "hadamard",
                "apply": [
                    {"targets": ["re:.*down_proj$"], "location": "input"},
                    {"targets": ["re:.*down_proj$"], "location": "weight_input", "inverse": True},
                ],
            }
        }
    }
}
"""The online rotation of QuIP and SpinQuant, as llm-compressor states it."""


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "by gptq"),
        ({"quantization_config": {"load_in_4bit": True}}, "by bitsandbytes"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "by fp8"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "by MLX"),
        ({"compression_config": {"config_groups": {}}}, "by compressed-tensors"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", **ROTATED}},
            "by compressed-tensors, with a transform_config that rotates what its layers are given",
        ),
    ],
)
def test_an_unsupported_quantisation_is_recognised_by_its_configuration(
    tmp_path: Path, config: dict[str, Any], expected: str
) -> None:
    model = llama(tmp_path / "a")
    (model / "config.json").write_text(json.dumps(config))
    assert f"is quantised ({expected})" in refusal(model)


def whole(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


FORMATS = {
    "GPTQ or AWQ": {"qweight": whole(1, 8), "qzeros": whole(1, 1), "scales": torch.ones(1, 8)},
    "bitsandbytes": {
        "weight.absmax": torch.ones(1),
        "weight": whole(32, 1, dtype=torch.uint8),
    },
    "scales beside the weights": {
        "weight": whole(8, 8, dtype=torch.int8),
        "weight_scale": torch.ones(8, 1),
        "weight_zero_point": whole(8, 1, dtype=torch.int8),
    },
    "compressed-tensors": {"weight_packed": whole(8, 1), "weight_shape": whole(2)},
    "ModelOpt": {
        "weight": torch.ones(8, 8).to(torch.float8_e4m3fn),
        "weight_scale": torch.ones(()),
        "pre_quant_scale": torch.ones(8),
    },
    "torchao": {"_weight_qdata": whole(8, 8, dtype=torch.int8)},
    "quanto": {"weight._data": whole(8, 8, dtype=torch.int8), "weight._scale": torch.ones(8, 1)},
    "HQQ": {"W_q": whole(4, 8, dtype=torch.uint8), "scale": torch.ones(8, 1)},
    "EXL2": {"q_weight": whole(1, 8), "q_scale": whole(1, 1), "q_groups": whole(2)},
    "EXL3": {"trellis": whole(1, 1, 16, dtype=torch.int16), "suh": torch.ones(8)},
    "AQLM": {"codes": whole(8, 1, 1, dtype=torch.int8), "codebooks": torch.ones(1, 256, 1, 8)},
    "VPTQ": {"centroids": torch.ones(1, 8, 8), "indices": whole(1, 8)},
    "MXFP4": {
        "gate_up_proj_blocks": whole(2, 8, 1, 16, dtype=torch.uint8),
    },
    "MLX": {
        "weight": whole(8, 1, dtype=torch.uint32),
        "scales": torch.ones(8, 1),
        "biases": torch.ones(8, 1),
    },
}


@pytest.mark.parametrize("name", FORMATS)
def test_an_unsupported_quantisation_is_recognised_by_its_tensors(
    tmp_path: Path, name: str
) -> None:
    tensors = {f"{LINEAR}.{part}": tensor for part, tensor in FORMATS[name].items()}
    write_checkpoint(tmp_path / "a", tensors, {})
    assert f"is quantised ({name}: " in refusal(tmp_path / "a")


def test_weights_compressed_by_a_mask_are_refused(tmp_path: Path) -> None:
    model = llama(tmp_path / "a")
    tensors = load_tensors(model)
    weight = tensors.pop("model.layers.0.mlp.up_proj.weight")
    tensors["model.layers.0.mlp.up_proj.weight.compressed"] = weight[:, ::2].contiguous()
    tensors["model.layers.0.mlp.up_proj.weight.bitmask"] = whole(8, 1, dtype=torch.uint8)
    save_file(tensors, model / "model.safetensors")
    assert "is quantised (compressed-tensors: it has 'model.layers.0.mlp" in refusal(model)


def test_integer_weights_without_a_known_format_are_refused(tmp_path: Path) -> None:
    for name, tensor in (("weight", whole(8, 1, dtype=torch.uint8)), ("down_proj", whole(2, 8, 8))):
        write_checkpoint(tmp_path / name, {f"{LINEAR}.{name}": tensor}, {})
        assert f"is quantised ('{LINEAR}.{name}' holds " in refusal(tmp_path / name)


def test_tensors_that_only_look_quantised_are_accepted(tmp_path: Path) -> None:
    tensors = {
        "embeddings.position_ids": whole(1, 8, dtype=torch.int64),
        "h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
        "norm.num_batches_tracked": whole(dtype=torch.int64),
        "vision.blocks": torch.ones(4, 4),
        "mixer.q_weight": torch.ones(2, 4),  # PLaMo 2's norms of queries
        "quantizer.codes": torch.ones(4, 4),
        "count.weight": whole(4),
        "proj.scales": torch.ones(4),
    }
    write_checkpoint(tmp_path / "a", tensors, {"compression_config": {}, "quantization": None})
    assert set(open_checkpoint(tmp_path / "a").tensors) == set(tensors)


def test_equal_headers_do_not_hide_a_quantisation_that_the_configuration_states(
    tmp_path: Path,
) -> None:
    headers = HeaderReader()
    plain, other = llama(tmp_path / "a"), llama(tmp_path / "b")
    assert open_checkpoint(local(plain), headers).decoded is None
    config = {"quantization_config": {"quant_method": "fp8"}}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"b' is quantised \(by fp8\)"):
        open_checkpoint(local(other), headers)
