"""Finds weights that are stored as codes and scales, and says how to dequantise them.

They are recognised by the names and dtypes of the tensors:

    codes                       beside them                         as written by
    weight, 8-bit float         weight_scale_inv, or scale          DeepSeek-V3, Kimi K2
    NAME, 8-bit float           NAME_scale_inv                      transformers, fused experts
    weight, 8-bit float, int8   weight_scale                        compressed-tensors, ModelOpt
    weight, fp4 in bytes        weight_scale and weight_scale_2     ModelOpt's NVFP4
    weight, fp4 in bytes        scale, powers of two                DeepSeek-V4
    weight_packed, fp4          weight_scale, weight_global_scale   compressed-tensors' NVFP4
    weight_packed, fp4          weight_scale, powers of two         compressed-tensors' MXFP4
    weight_packed, int4, int8   weight_scale, weight_shape          Kimi K2 Thinking
    NAME_blocks, fp4            NAME_scales, powers of two          gpt-oss, transposed
    qweight, in words           qzeros, scales, g_idx               `packed_words`: GPTQ, AWQ, …
    weight, nf4, fp4, int8      absmax, quant_map, … or SCB         bitsandbytes: `bitsandbytes`

A value is the code times its scales, or divided by ``weight_global_scale``; half of the range is
first subtracted from packed integers. A scale is for the whole tensor, a row, or a block of rows
and columns, according to the shapes of scales and codes. fp4 is e2m1 of the OCP Microscaling
Formats specification 1.0, with two values per byte, the first in the lower half.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from mergeloom.engine.base.dtypes import F4, F8_E8M0, U4, U8
from mergeloom.engine.base.errors import COPY_AGAIN, CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.run.arrange import read_content
from mergeloom.engine.storage.source import ReadOptions
from mergeloom.methods.inputs.dequantise import Dequantise, Scale
from mergeloom.planners.models.bitsandbytes import STATE_INFIX, eight_bits, four_bits
from mergeloom.planners.models.packed_words import AUTO_ROUND, WordFormat, packed_words, word_format
from mergeloom.planners.models.quantised_weight import FoundWeight, QuantisedWeight, shape_text
from mergeloom.planners.models.stored_tensors import described
from mergeloom.planners.models.unsupported_quantisation import quantised_by_config

Shape = tuple[int, ...]

_CODE_DTYPES = {"F8_E4M3", "F8_E5M2", "I8", "U8", "F4"}
"""Dtypes of codes stored as ``weight``."""
_ACTIVATION_SCALES = ("input_scale", "input_global_scale", "activation_scale", "k_scale", "v_scale")
"""Scales of activations, not of weights; not needed for dequantised weights."""


@dataclass(frozen=True)
class DecodedWeights:
    """The weights of a checkpoint: ``coded`` ones under the names the model uses, ``plain`` ones,
    and tensors that are not needed (``left``)."""

    coded: Mapping[str, QuantisedWeight]
    plain: Mapping[str, StoredTensor]
    left: tuple[str, ...]


@dataclass(frozen=True)
class QuantisationHints:
    """Settings from the configuration: block shape (rows, columns), bits of packed integers, and
    the format of packed words."""

    block: tuple[int, int] | None = None
    bits: int | None = None
    words: WordFormat | None = None


_NO_HINTS = QuantisationHints()


def quantisation_hints(config: Mapping[str, Any]) -> QuantisationHints:
    """The hints in the quantisation settings; everything else is inferred from shapes."""
    settings = _settings(config)
    if settings is None:
        return _NO_HINTS
    block = settings.get("weight_block_size")
    if not (isinstance(block, list) and len(block) == 2 and all(type(n) is int for n in block)):
        block = None
    groups = settings.get("config_groups")
    weights = (
        [group.get("weights") for group in (groups or {}).values() if isinstance(group, Mapping)]
        if isinstance(groups, Mapping)
        else []
    )
    named = [each.get("num_bits") for each in weights if isinstance(each, Mapping)]
    bits = {each for each in named if type(each) is int}
    only = bits.pop() if len(bits) == 1 else None
    words = word_format(settings) if _method_name(settings) in _WORD_METHODS else None
    return QuantisationHints(
        words=None if isinstance(words, str) else words,
        block=(block[0], block[1]) if block is not None and min(block) > 0 else None,
        bits=only if only in (4, 8) else None,
    )


_WORD_METHODS = {"gptq", "awq", *AUTO_ROUND}
_SUPPORTED = {
    *(
        "fp8",
        "fbgemm_fp8",
        "compressed-tensors",
        "modelopt",
        "mxfp4",
        "bitsandbytes",
        *_WORD_METHODS,
    )
}
"""Supported quantisation methods, by their names in configurations."""


def unsupported_method(config: Mapping[str, Any]) -> str | None:
    """The unsupported quantisation method named in a configuration, as text; ``None`` if there is
    none."""
    settings = _settings(config)
    if settings is None:
        return quantised_by_config(config)
    method = _method_name(settings)
    if method in _WORD_METHODS:
        words = word_format(settings)
        return f"by {method}, {words}" if isinstance(words, str) else None
    if _transforms_inputs(settings):
        return f"by {method}, with a transform_config that rotates what its layers are given"
    loads = settings.get("load_in_4bit") or settings.get("load_in_8bit")
    if method in _SUPPORTED or ("quant_method" not in settings and loads):
        return None
    return quantised_by_config(config)


def _transforms_inputs(settings: Mapping[str, Any]) -> bool:
    """Whether compressed-tensors transforms the inputs or outputs of layers, which plain weights
    cannot express, and not weights alone."""
    transforms = settings.get("transform_config")
    groups = transforms.get("config_groups") if isinstance(transforms, Mapping) else None
    applied = (
        each.get("apply")
        for each in (groups.values() if isinstance(groups, Mapping) else ())
        if isinstance(each, Mapping)
    )
    return any(
        isinstance(one, Mapping) and not str(one.get("location")).startswith("weight_")
        for several in applied
        for one in (several if isinstance(several, list) else ())
    )


def _method_name(settings: Mapping[str, Any]) -> str:
    """The method named in the settings; empty if there is none."""
    found = settings.get("quant_method")
    return found if isinstance(found, str) else ""


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The quantisation settings of the model or of its text part."""
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping):
            found = part.get("quantization_config") or part.get("compression_config")
            if isinstance(found, Mapping):
                return found
    return None


def find_quantised(
    tensors: Mapping[str, StoredTensor], where: str, hints: QuantisationHints = _NO_HINTS
) -> DecodedWeights:
    """Find the quantised weights and their scales.

    Raises:
        CheckpointError: scales and codes do not match; ``where`` is the name of the checkpoint.
    """
    coded: dict[str, QuantisedWeight] = {}
    taken: set[str] = set()
    left: list[str] = []
    for name in tensors:
        try:
            found = _found_weight(tensors, name, hints)
            if found is not None:
                found.value.check()
        except ValueError as error:
            raise CheckpointError(
                f"'{where}': the quantised '{name}' and its scales do not match: {error}",
                remedy=f"merge the original weights, or {COPY_AGAIN}",
            ) from error
        if found is not None:
            coded[found.name] = found.value
            taken.update(found.used)
            left += found.unused
    if coded:
        taken.update(left)
        of_activations = [n for n in tensors if n.rpartition(".")[2] in _ACTIVATION_SCALES]
        taken.update(of_activations)
        left += of_activations
    if not taken:
        return DecodedWeights(coded, tensors, ())
    plain = {name: tensor for name, tensor in tensors.items() if name not in taken}
    return DecodedWeights(coded, plain, tuple(left))


def _found_weight(
    tensors: Mapping[str, StoredTensor], name: str, hints: QuantisationHints
) -> FoundWeight | None:
    """The weight whose codes (or equivalent tensor) are called ``name``.

    Raises:
        ValueError: scales and codes do not fit each other.
    """
    last = name.rpartition(".")[2]
    if last == "weight":
        coded = described(tensors)[name].dtype.code in _CODE_DTYPES
        return _eight_bit_weight(tensors, name.removesuffix(last), hints) if coded else None
    prefix = name.removesuffix(last)
    if last.endswith("_scale_inv") and last != "weight_scale_inv":
        return _fused_experts(tensors, name, hints)
    if last == "qweight" and hints.words is not None:
        return packed_words(tensors, prefix, hints.words)
    if last == "SCB":
        return eight_bits(tensors, prefix)
    if STATE_INFIX in name:
        return four_bits(tensors, name)
    if last == "weight_packed":
        return _packed_weight(tensors, prefix, hints)
    return _block_weight(tensors, name) if last.endswith("_blocks") else None


def without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without quantisation settings, also in nested objects."""
    return {
        key: without_quantisation(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in ("quantization_config", "compression_config", "expert_dtype")
    }


def _eight_bit_weight(
    tensors: Mapping[str, StoredTensor], prefix: str, hints: QuantisationHints
) -> FoundWeight | None:
    """A ``weight`` with a dtype of codes, and its scales."""
    name = f"{prefix}weight"
    codes, kind = tensors[name], tensors[name].dtype.code
    first = next(
        (
            part
            for part in ("weight_scale_inv", "weight_scale", "scale")
            if prefix + part in tensors
        ),
        None,
    )
    if first is None or prefix + "weight_zero_point" in tensors:
        return None
    scale = _as_numbers(tensors[prefix + first])
    side, used = [scale], [name, prefix + first]
    kernels = []
    if kind in ("U8", "F4") or (kind == "I8" and scale.dtype == F8_E8M0):
        codes = codes.view_as(F4)
    block = hints.block if codes.dtype.bits == 8 else None
    kernels.append(_scale_blocks(codes.shape, scale.shape, block))
    second = tensors.get(f"{prefix}weight_scale_2")
    if second is not None:
        side.append(second)
        used.append(f"{prefix}weight_scale_2")
        kernels.append(Scale(single=True))
    value = QuantisedWeight(codes, Dequantise(tuple(kernels)), tuple(side))
    return FoundWeight(name, value, used, [])


def _fused_experts(
    tensors: Mapping[str, StoredTensor], scales: str, hints: QuantisationHints
) -> FoundWeight | None:
    """Fused experts, named without ``weight``."""
    name = scales.removesuffix("_scale_inv")
    codes = tensors.get(name)
    if codes is None or codes.dtype.bits != 8 or not codes.dtype.floating:
        return None
    scale = _as_numbers(tensors[scales])
    kernel = Dequantise((_scale_blocks(codes.shape, scale.shape, hints.block),))
    return FoundWeight(name, QuantisedWeight(codes, kernel, (scale,)), [name, scales], [])


def _packed_weight(
    tensors: Mapping[str, StoredTensor], prefix: str, hints: QuantisationHints
) -> FoundWeight | None:
    """``weight_packed`` of compressed-tensors."""
    packed, scale = tensors[f"{prefix}weight_packed"], tensors.get(f"{prefix}weight_scale")
    if scale is None or any(
        prefix + part in tensors for part in ("weight_zero_point", "weight_g_idx")
    ):
        return None
    used = [f"{prefix}weight_packed", f"{prefix}weight_scale"]
    shape = f"{prefix}weight_shape"
    unused = [shape] if shape in tensors else []
    side, kernels, zero = [_as_numbers(scale)], [], 0.0
    if packed.dtype.code == "I32":
        bits = _bits_of_code(packed.shape, scale.shape, tensors.get(shape), hints.bits)
        codes = packed.view_as(U4 if bits == 4 else U8)
        zero = float(1 << (bits - 1))
    else:
        codes = packed.view_as(F4)
    kernels.append(_scale_blocks(codes.shape, side[0].shape))
    overall = tensors.get(f"{prefix}weight_global_scale")
    if overall is not None:
        side.append(overall)
        used.append(f"{prefix}weight_global_scale")
        kernels.append(Scale(single=True, inverse=True))
    value = QuantisedWeight(codes, Dequantise(tuple(kernels), zero=zero), tuple(side))
    return FoundWeight(f"{prefix}weight", value, used, unused)


def _block_weight(tensors: Mapping[str, StoredTensor], name: str) -> FoundWeight | None:
    """Experts of gpt-oss: 32 codes in 16 bytes, blocks along the last dimension but one."""
    target = name.removesuffix("_blocks")
    scale, blocks = tensors.get(f"{target}_scales"), tensors[name]
    if scale is None or blocks.dtype != U8 or len(blocks.shape) < 3:
        return None
    *outer, count, size = blocks.shape
    codes = blocks.reshape((*outer, count * size)).view_as(F4)
    value = QuantisedWeight(
        codes, Dequantise((Scale(1, 2 * size),)), (_as_numbers(scale),), values_transposed=True
    )
    return FoundWeight(target, value, [name, f"{target}_scales"], [])


def _as_numbers(tensor: StoredTensor) -> StoredTensor:
    """Scales with a dtype of numbers; bytes are the exponents of powers of two."""
    return tensor.view_as(F8_E8M0) if tensor.dtype == U8 else tensor


def _scale_blocks(codes: Shape, scales: Shape, block: tuple[int, int] | None = None) -> Scale:
    """The block of each scale; ``block`` is the expected shape, if known.

    Raises:
        ValueError: no block size gives this number of scales.
    """
    if math.prod(scales) == 1:
        return Scale(single=True)
    *outer, rows, columns = codes
    if scales == (rows,) and not outer:
        return Scale(1, 0)
    if len(scales) != len(codes) or list(scales[:-2]) != outer:
        raise ValueError(f"{shape_text(codes)} and {shape_text(scales)}")
    if block is not None:
        down, across = block
        if scales[-2:] == (-(-rows // down), -(-columns // across)):
            return Scale(down, across)
    return Scale(_block_size(rows, scales[-2]), _block_size(columns, scales[-1]))


def _block_size(size: int, count: int) -> int:
    """Elements of a dimension that share a scale; 0 for all of them."""
    if count == 1:
        return 0
    if count == size:
        return 1
    for block in (128, 32, 64, 16, 256, 512):  # the last block may be smaller
        if -(-size // block) == count:
            return block
    raise ValueError(f"{size} elements and {count} scales")


def _bits_of_code(
    words: Shape, scales: Shape, stored: StoredTensor | None, bits: int | None
) -> int:
    """Bits of a code in ``words``, of which the configuration says ``bits``, if one number for all.

    ``stored`` is the shape of the weight, in a tensor; it is read unless its number of columns
    follows, because groups consist of whole words.

    Raises:
        ValueError: they are neither 4 nor 8, are not known, or a row ends within a word.
        RunError: the shape cannot be read.
    """
    if bits is not None and (stored is None or scales[-1] > 1):
        return bits
    if stored is None:
        raise ValueError("it has no weight_shape, and the configuration no one number of bits")
    columns = _numbers(stored)[-1]
    found = next((each for each in (4, 8) if columns * each == 32 * words[-1]), None)
    if found is None:
        raise ValueError(
            f"{shape_text(words)} words are not {columns} columns of 4 or 8 bits in whole words"
        )
    return found


def _numbers(tensor: StoredTensor) -> Sequence[int]:
    """The numbers in a small tensor: the shape of a weight."""
    letter = {"I64": "q", "I32": "i"}.get(tensor.dtype.code)
    if letter is None or tensor.shape != (2,):
        raise ValueError(f"its weight_shape is not two integers, but {tensor.dtype.code}")
    return struct.unpack(f"<2{letter}", bytes(read_content(tensor, ReadOptions())))
