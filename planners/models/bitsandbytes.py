"""Weights stored by bitsandbytes: in 4 bits (nf4 or fp4), or in 8 bits (LLM.int8).

    weight                  bytes (n/2, 1): two codes of the flat weight, the first in the upper
                            half; or int8 (out, in)
    weight.absmax           for each block of codes its scale, or the code of it
    weight.quant_map        what each code stands for
    weight.nested_absmax    for each block of codes of scales their scale
    weight.nested_quant_map what each code of a scale stands for
    weight.quant_state.*    JSON in bytes: shape, sizes of blocks, what is added to scales
    SCB                     for each row of int8 codes the magnitude of code 127

T. Dettmers et al., QLoRA, 2023, arXiv:2305.14314; LLM.int8(), 2022, arXiv:2208.07339.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from mergeloom.engine.base.dtypes import U4_UPPER, U8
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.run.arrange import read_content
from mergeloom.engine.storage.source import ReadOptions
from mergeloom.methods.inputs.dequantise import Dequantise, Nested, Scale
from mergeloom.planners.models.quantised_weight import (
    FoundWeight,
    QuantisedWeight,
    Shape,
    shape_text,
)

STATE_INFIX = ".quant_state.bitsandbytes__"
"""Infix of the name of a weight's state, followed by the kind of codes."""

_MAX_STATE_BYTES = 4096
"""Maximum size of a state in bytes; a few hundred are usual."""
_MAX_BLOCK = 1 << 16


def four_bits(tensors: Mapping[str, StoredTensor], state: str) -> FoundWeight | None:
    """The 4-bit weight whose state is the tensor ``state``.

    Raises:
        ValueError: the state is malformed, or does not match the other tensors.
        RunError: it cannot be read.
    """
    name, _, kind = state.partition(STATE_INFIX)
    if kind not in ("nf4", "fp4"):
        raise ValueError(f"the type is '{kind}'; nf4 and fp4 are supported")
    about = _read_state(tensors[state])
    try:
        codes, scales, table = (tensors[name + p] for p in ("", ".absmax", ".quant_map"))
        inner = (
            [tensors[f"{name}.nested_{part}"] for part in ("quant_map", "absmax")]
            if "nested_blocksize" in about
            else []
        )
    except KeyError as error:
        raise ValueError(f"{error} is missing") from error
    shape, size = _shape(about.get("shape")), _block(about, "blocksize")
    count = math.prod(shape)
    if codes.bytes.nbytes * 2 != count or not count:
        raise ValueError(f"{codes.bytes.nbytes} bytes do not hold {shape_text(shape)} elements")
    for each in (table, *inner, *(() if inner else (scales,))):
        if each.dtype.code != "F32":
            raise ValueError(f"scales and tables of {each.dtype} are not supported")
    nested = None
    if inner:
        offset = about.get("nested_offset", 0.0)
        if scales.dtype != U8 or not isinstance(offset, int | float):
            raise ValueError(f"the quantised scales are {scales.dtype}")
        nested = Nested(_block(about, "nested_blocksize"), float(offset))
    flat = StoredTensor(codes.bytes, U8, (codes.bytes.nbytes,)).view_as(U4_UPPER)
    # Blocks divide the flattened weight: if they do not divide a row, each block counts as a row.
    rows = (each for each in (shape[-1], size) if each % size == 0 and count % each == 0)
    row = next(rows, count)
    kernel = Dequantise((Scale(1, min(size, row), nested=nested),), table=16, shape=shape)
    value = QuantisedWeight(flat.reshape((count // row, row)), kernel, (table, scales, *inner))
    used = [name, state, *(f"{name}.{part}" for part in ("absmax", "quant_map"))]
    used += [f"{name}.nested_{part}" for part in ("quant_map", "absmax")] if inner else []
    return FoundWeight(name, value, used, [])


def eight_bits(tensors: Mapping[str, StoredTensor], prefix: str) -> FoundWeight | None:
    """The int8 weight whose scales are ``SCB``; ``prefix`` is the start of both names.

    Raises:
        ValueError: it is not stored row by row, or does not match.
        RunError: its layout cannot be read.
    """
    codes, scales = tensors.get(f"{prefix}weight"), tensors[f"{prefix}SCB"]
    if codes is None or codes.dtype.code != "I8" or scales.shape != codes.shape[:1]:
        raise ValueError(
            f"scales {shape_text(scales.shape)} do not match the rows of an int8 weight"
        )
    used, order = [f"{prefix}weight", f"{prefix}SCB"], tensors.get(f"{prefix}weight_format")
    if order is not None:
        used.append(f"{prefix}weight_format")
        if order.bytes.nbytes != 1 or read_content(order, ReadOptions())[0]:
            raise ValueError("it is stored in a GPU-specific order, not row by row")
    # the scale is SCB / 127
    value = QuantisedWeight(codes, Dequantise((Scale(1, 0),), factor=1 / 127), (scales,))
    return FoundWeight(f"{prefix}weight", value, used, [])


def _read_state(tensor: StoredTensor) -> dict[str, Any]:
    if tensor.bytes.nbytes > _MAX_STATE_BYTES:
        raise ValueError(f"its state has {tensor.bytes.nbytes} bytes")
    try:
        found = json.loads(bytes(read_content(tensor, ReadOptions())).decode())
    except (ValueError, RecursionError) as error:
        raise ValueError("its state is not JSON") from error
    if not isinstance(found, dict):
        raise ValueError("its state is not a JSON object")
    return found


def _shape(found: object) -> Shape:
    if isinstance(found, list) and found and all(type(n) is int and n > 0 for n in found):
        return tuple(found)
    raise ValueError("its state has no shape")


def _block(about: Mapping[str, Any], key: str) -> int:
    size = about.get(key)
    if type(size) is int and 0 < size <= _MAX_BLOCK and not size % 2:
        return size
    raise ValueError(f"its state has no {key}")
