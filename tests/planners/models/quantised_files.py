"""Small checkpoints of quantised weights in every format, and the values that they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.planners.support import llama_names

WIDTH, ROWS = 256, 160
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": WIDTH,
    "vocab_size": 64,
    "torch_dtype": "bfloat16",
}
Tensors = dict[str, torch.Tensor]
Made = tuple[Tensors, torch.Tensor]
"""What is stored, by the ends of names, and the values."""
FP8 = torch.float8_e4m3fn


def weights(seed: int) -> Tensors:
    """A small decoder in bfloat16; its matrices have ragged blocks of 128 rows."""
    generator = torch.Generator().manual_seed(seed)

    def make(name: str) -> torch.Tensor:
        shape = (
            (WIDTH,)
            if "norm" in name
            else (64 if "embed" in name or "head" in name else ROWS, WIDTH)
        )
        return (torch.randn(shape, generator=generator) * 0.05).bfloat16()

    return {name: make(name) for name in llama_names(2)}


def spread(scales: torch.Tensor, rows: int, columns: int, block: tuple[int, int]) -> torch.Tensor:
    """Scales of blocks as scales of elements."""
    large = scales.double().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return large[:rows, :columns]


def fp8_blocks(weight: torch.Tensor) -> Made:
    """DeepSeek-V3: float8 with one factor for each 128 x 128, called inverse."""
    rows, columns = weight.shape
    scales = torch.rand(-(-rows // 128), -(-columns // 128)) * 0.01 + 0.001
    codes = (weight.double() / spread(scales, rows, columns, (128, 128))).to(FP8)
    value = codes.double() * spread(scales, rows, columns, (128, 128))
    return {"weight": codes, "weight_scale_inv": scales}, value


def fp8_powers(weight: torch.Tensor) -> Made:
    """DeepSeek-V4: as V3, but the factors are powers of two in a byte, and called ``scale``."""
    rows, columns = weight.shape
    exponents = torch.randint(115, 125, (-(-rows // 128), -(-columns // 128)), dtype=torch.uint8)
    factors = spread(torch.exp2(exponents.double() - 127), rows, columns, (128, 128))
    codes = (weight.double() / factors).to(FP8)
    scales = exponents.view(torch.float8_e8m0fnu)
    return {"weight": codes, "scale": scales}, codes.double() * factors


def fp4_powers(weight: torch.Tensor) -> Made:
    """Experts of DeepSeek-V4: two codes in a byte, powers of two for 32 of them."""
    rows, columns = weight.shape
    exponents = torch.randint(115, 125, (rows, columns // 32), dtype=torch.uint8)
    packed = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
    factors = spread(torch.exp2(exponents.double() - 127), rows, columns, (1, 32))
    parts = {"weight": packed.view(torch.int8), "scale": exponents.view(torch.float8_e8m0fnu)}
    return parts, fp4_values(packed) * factors


def fp8_channels(weight: torch.Tensor) -> Made:
    scales = weight.abs().amax(1, keepdim=True).float() / 448
    codes = (weight.float() / scales).to(FP8)
    parts = {"weight": codes, "weight_scale": scales, "input_scale": torch.ones(1)}
    return parts, codes.double() * scales.double()


def fp8_whole(weight: torch.Tensor) -> Made:
    scale = weight.abs().max().float() / 448
    codes = (weight.float() / scale).to(FP8)
    return {"weight": codes, "weight_scale": scale}, codes.double() * scale.double()


def int8_channels(weight: torch.Tensor) -> Made:
    scales = weight.abs().amax(1, keepdim=True).float() / 127
    codes = (weight.float() / scales).round().to(torch.int8)
    return {"weight": codes, "weight_scale": scales}, codes.double() * scales.double()


def fp4_values(packed: torch.Tensor) -> torch.Tensor:
    """Two to a byte, the first in the lower half; the highest bit is the sign."""
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
    halves = torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()
    return torch.where(halves >= 8, -table[halves & 7], table[halves & 7])


def compressed(kind: str) -> Callable[[torch.Tensor], Made]:
    """By the library that writes the format, and reads it again as the oracle."""

    def make(weight: torch.Tensor) -> Made:
        library = pytest.importorskip("compressed_tensors", reason="the format's own library")
        from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
        from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
        from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor

        assert library
        arguments = library.quantization.QuantizationArgs
        columns = weight.shape[1]
        if kind == "nvfp4":
            args = arguments(
                num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True,
                scale_dtype=FP8,
            )  # fmt: skip
            compressor, group = NVFP4PackedCompressor, 16
        elif kind == "mxfp4":
            args = arguments(
                num_bits=4, type="float", strategy="group", group_size=32, symmetric=True,
                scale_dtype=torch.uint8,
            )  # fmt: skip
            compressor, group = MXFP4PackedCompressor, 32
        else:
            bits = int(kind.removeprefix("int"))
            args = arguments(
                num_bits=bits, type="int", strategy="group", group_size=32, symmetric=True
            )
            compressor, group = PackedQuantizationCompressor, 32
        largest = weight.float().unflatten(1, (columns // group, group)).abs().amax(-1)
        state: Tensors = {"weight": weight.float()}
        if kind == "nvfp4":
            overall = torch.tensor([448.0 * 6.0]) / weight.abs().max().float()
            state |= {"weight_scale": largest / 6 * overall, "weight_global_scale": overall}
        elif kind == "mxfp4":
            state |= {"weight_scale": torch.exp2(torch.floor(torch.log2(largest / 4)))}
        else:
            state |= {"weight_scale": (largest / (2 ** (args.num_bits - 1) - 1)).bfloat16().float()}
        scheme = library.quantization.QuantizationScheme(targets=["Linear"], weights=args)
        parts = compressor.compress(dict(state), scheme)
        value = compressor.decompress(dict(parts), scheme)["weight"]
        if kind == "nvfp4":  # the library computes in bfloat16
            exact = fp4_values(parts["weight_packed"]).unflatten(1, (columns // group, group))
            exact = exact * parts["weight_scale"].double().unsqueeze(-1) / overall.double()
            torch.testing.assert_close(exact.flatten(1), value.double(), rtol=8e-3, atol=0)
            value = exact.flatten(1)
        return {name: t.contiguous() for name, t in parts.items() if t is not None}, value.double()

    return make


def in_words(codes: torch.Tensor, bits: int, order: Sequence[int] | None = None) -> torch.Tensor:
    """Codes of one row beside each other in 32-bit words, the first in the lowest bits."""
    of_word = 32 // bits
    parts = codes.long().unflatten(1, (-1, of_word))
    words = sum(parts[:, :, k] << (bits * place) for place, k in enumerate(order or range(of_word)))
    return words.to(torch.uint32).view(torch.int32)


def gptq(bits: int, version: int, shuffled: bool) -> Callable[[torch.Tensor], Made]:
    """As GPTQ's definition says: codes along inputs, and zero points less one in version 1."""

    def make(weight: torch.Tensor) -> Made:
        outside, inside = weight.shape
        size, most = 64, (1 << bits) - 1
        groups = torch.arange(inside) // size
        if shuffled:
            groups = groups[torch.randperm(inside)]
        scales = (torch.rand(inside // size, outside) * 0.02 + 0.001).half()
        zeros = torch.randint(2 - version, most + 1, scales.shape)
        codes = torch.randint(0, most + 1, (inside, outside))
        value = (codes - zeros[groups]).double() * scales.double()[groups]
        parts = {
            "qweight": in_words(codes.t(), bits).t(),
            "qzeros": in_words(zeros - (2 - version), bits),
            "scales": scales,
            "g_idx": groups.int(),
        }
        return {name: tensor.contiguous() for name, tensor in parts.items()}, value.t()

    return make


def awq(weight: torch.Tensor) -> Made:
    """As AWQ's definition says, for its kernel called gemm."""
    outside, inside = weight.shape
    order, size = (0, 2, 4, 6, 1, 3, 5, 7), 64
    scales = (torch.rand(inside // size, outside) * 0.02 + 0.001).half()
    zeros = torch.randint(0, 16, scales.shape)
    codes = torch.randint(0, 16, (inside, outside))
    groups = torch.arange(inside) // size
    value = (codes - zeros[groups]).double() * scales.double()[groups]
    parts = {"qweight": in_words(codes, 4, order), "qzeros": in_words(zeros, 4, order)}
    return parts | {"scales": scales}, value.t()


def bits_and_bytes(kind: str) -> Callable[[torch.Tensor], Made]:
    """By the library that writes the format, and reads it again as the oracle."""

    def make(weight: torch.Tensor) -> Made:
        library = pytest.importorskip("bitsandbytes.functional", reason="the format's own library")
        if kind == "int8":
            codes, scales, _ = library.int8_vectorwise_quant(weight.half())
            value = library.int8_vectorwise_dequant(codes, scales)
            order = torch.tensor(0, dtype=torch.uint8)
            return {"weight": codes, "SCB": scales, "weight_format": order}, value.double()
        codes, state = library.quantize_4bit(
            weight.float(), quant_type=kind, compress_statistics=kind == "nf4"
        )
        parts = {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
        again = library.QuantState.from_dict(
            {name.removeprefix("weight."): tensor for name, tensor in parts.items()}, codes.device
        )
        value = library.dequantize_4bit(codes, again)
        return parts | {"weight": codes}, value.double()

    return make


def packed_settings(bits: int) -> dict[str, Any]:
    groups = {"group_0": {"weights": {"num_bits": bits, "group_size": 32}, "targets": ["Linear"]}}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": groups,
    }


FORMATS: dict[str, tuple[Callable[[torch.Tensor], Made], Any]] = {
    "fp8 blocks": (fp8_blocks, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "fp8 powers of two": (
        fp8_powers,
        {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]},
    ),
    "fp4 powers of two": (
        fp4_powers,
        {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]},
    ),
    "fp8 channels": (fp8_channels, {"quant_method": "compressed-tensors"}),
    "fp8 whole": (fp8_whole, {"quant_method": "modelopt"}),
    "int8 channels": (int8_channels, {"quant_method": "compressed-tensors"}),
    "int4 groups": (compressed("int4"), packed_settings(4)),
    "int8 groups": (compressed("int8"), packed_settings(8)),
    "nvfp4": (compressed("nvfp4"), {"quant_method": "compressed-tensors"}),
    "mxfp4": (compressed("mxfp4"), {"quant_method": "compressed-tensors"}),
    "gptq": (gptq(4, 1, True), {"quant_method": "gptq", "bits": 4, "group_size": 64}),
    "gptq 2 bits": (gptq(2, 1, False), {"quant_method": "gptq", "bits": 2, "group_size": 64}),
    "gptq v2": (
        gptq(8, 2, False),
        {"quant_method": "gptq", "bits": 8, "group_size": 64, "checkpoint_format": "gptq_v2"},
    ),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"}),
    "auto-round": (
        awq,
        {
            "quant_method": "auto-round",
            "bits": 4,
            "group_size": 64,
            "packing_format": "auto_round:auto_awq",
        },
    ),
    "nf4": (bits_and_bytes("nf4"), {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "fp4": (bits_and_bytes("fp4"), {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "LLM.int8": (bits_and_bytes("int8"), {"quant_method": "bitsandbytes", "load_in_8bit": True}),
}


PLAIN_ONLY = {"fp4", "gptq 2 bits", "auto-round", "fp8 powers of two"}
"""Whose mechanism another one tests in merges."""


def quantised(kind: str, folder: Path, seed: int) -> Tensors:
    """Write a checkpoint whose linear layers are codes; the values of all of its weights."""
    make, settings = FORMATS[kind]
    stored: Tensors = {}
    values: Tensors = {}
    for name, weight in weights(seed).items():
        if "proj" not in name:
            stored[name], values[name] = weight, weight.double()
            continue
        parts, values[name] = make(weight)
        stored |= {f"{name.removesuffix('weight')}{part}": t for part, t in parts.items()}
    folder.mkdir()
    save_file(stored, folder / "model.safetensors")
    config = CONFIG | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    return values


def plain(folder: Path, seed: int) -> Tensors:
    folder.mkdir()
    save_file(weights(seed), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return {name: tensor.double() for name, tensor in weights(seed).items()}
