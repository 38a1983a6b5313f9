"""Weights whose codes are packed into 32-bit words, with zero points: GPTQ, AWQ, and AutoRound,
which packs as one of the two.

    tensor    GPTQ                                   AWQ (gemm)
    qweight   (in·bits/32, out), words of one        (in, out/8), words of one row, in the order
              column                                 0 2 4 6 1 3 5 7
    qzeros    (groups, out·bits/32), words of one    (groups, out/8), like qweight
              row
    scales    (groups, out)                          (groups, out)
    g_idx     (in): the group of each input          -

A value is (code - zero point) · scale. GPTQ's first checkpoint format stores the zero point minus
one, its second (``gptq_v2``) the zero point itself. A model's weight is (out, in): the reader
transposes words, and a kernel transposes what is in AWQ words (eight rows of one column).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergeloom.engine.base.dtypes import U2, U4, U4_EVEN, U8, DType
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.methods.inputs.dequantise import Dequantise, Scale
from mergeloom.planners.models.quantised_weight import (
    FoundWeight,
    QuantisedWeight,
    Shape,
    shape_text,
)

_DTYPES: dict[int, DType] = {2: U2, 4: U4, 8: U8}
"""Dtypes by bits, for sizes whose codes do not cross word boundaries."""


AUTO_ROUND = ("auto-round", "intel/auto-round")
_AUTO_ROUND_PACKINGS: Mapping[str, Mapping[str, str]] = {
    "auto_round:auto_gptq": {"quant_method": "gptq"},
    "auto_round:gptqmodel": {"quant_method": "gptq", "checkpoint_format": "gptq_v2"},
    "auto_round:auto_awq": {"quant_method": "awq"},
    "auto_round:awq": {"quant_method": "awq"},
}
"""AutoRound's packings, as the settings of the method that packs in the same way."""


@dataclass(frozen=True)
class WordFormat:
    """The format of packed words: ``bits`` of a code, and the number of inputs in a ``group`` that
    shares a scale (0 or less for all). ``zero_points_less_one`` says that zero points are stored
    minus 1."""

    bits: int
    group: int
    is_awq: bool
    zero_points_less_one: bool = True


def word_format(settings: Mapping[str, Any]) -> WordFormat | str:
    """The format of packed words, or the reason why it is not supported."""
    bits, group = settings.get("bits", settings.get("w_bit", 4)), settings.get("group_size", 128)
    sizes = (bits, group)
    if any(type(size) is not int or abs(size) >= 1 << 32 for size in sizes):
        return "without bits and group size"
    kind = _printable_value(settings.get("checkpoint_format") or settings.get("format") or "")
    if settings.get("quant_method") in AUTO_ROUND:
        packing = str(settings.get("packing_format"))
        found = _AUTO_ROUND_PACKINGS.get(packing)
        if found is None:
            return f"in the packing '{_printable_value(packing)}'"
        return word_format({**settings, **found})
    if settings.get("quant_method") == "awq":
        version = _printable_value(settings.get("version") or kind or "gemm").lower()
        if version != "gemm":
            return f"in the version '{version}'"
        return WordFormat(bits, group, True) if bits == 4 else f"in {bits} bits"
    if bits not in _DTYPES:
        return f"in {bits} bits"
    if kind not in ("", "gptq", "gptq_v2"):
        return f"in the format '{kind}'"
    return WordFormat(bits, group, False, kind != "gptq_v2")


def _printable_value(found: object) -> str:
    """A configuration value, if it can be shown in a message."""
    return found[:20] if isinstance(found, str) and found.isprintable() else "?"


def packed_words(
    tensors: Mapping[str, StoredTensor], prefix: str, words: WordFormat
) -> FoundWeight | None:
    """The weight whose codes are ``qweight``.

    Raises:
        ValueError: the other tensors do not match.
    """
    parts = {part: tensors.get(prefix + part) for part in ("qweight", "qzeros", "scales", "g_idx")}
    codes, zeros, scales, groups = parts.values()
    if codes is None or zeros is None or scales is None:
        return None
    if any(each.dtype.code != "I32" for each in (codes, zeros)) or len(codes.shape) != 2:
        raise ValueError(
            f"codes are {codes.dtype} {shape_text(codes.shape)}, zero points {zeros.dtype}"
        )
    per_word = 32 // words.bits
    if words.is_awq:
        inside, outside = codes.shape[0], codes.shape[1] * per_word
    else:
        inside, outside = codes.shape[0] * per_word, codes.shape[1]
    size = _group_size(words, inside, scales.shape)
    if scales.shape[1] != outside or zeros.shape != (scales.shape[0], outside // per_word):
        raise ValueError(
            f"codes {shape_text(codes.shape)}, scales {shape_text(scales.shape)}, zero points "
            f"{shape_text(zeros.shape)}"
        )
    if not words.is_awq and groups is not None:
        if groups.dtype.code != "I32" or groups.shape != (inside,):
            raise ValueError(
                f"{inside} inputs and groups {shape_text(groups.shape)} of {groups.dtype}"
            )
    else:
        groups = None
    dtype = U4_EVEN if words.is_awq else _DTYPES[words.bits]
    scale = Scale(1, size, across_first=True)
    kernel = Dequantise(
        (scale,),
        zero=1.0 if words.zero_points_less_one and not words.is_awq else 0.0,
        points=scale,
        groups=groups is not None,
        shape=(outside, inside) if words.is_awq else None,
    )
    arranged = codes.transpose().view_as(dtype)
    if words.is_awq:
        arranged = arranged.reshape((outside // per_word, inside, per_word))
    side = [scales, zeros.view_as(dtype), *([] if groups is None else [groups])]
    value = QuantisedWeight(arranged, kernel, tuple(side), codes_transposed=words.is_awq)
    used = [prefix + part for part, tensor in parts.items() if tensor is not None]
    return FoundWeight(f"{prefix}weight", value, used, [])


def _group_size(words: WordFormat, inside: int, scales: Shape) -> int:
    """Number of inputs that share a scale; the last group may be smaller."""
    if len(scales) != 2 or not scales[0] or not inside:
        raise ValueError(f"{inside} inputs, scales {shape_text(scales)}")
    size = words.group if 0 < words.group < inside else inside
    if -(-inside // size) != scales[0]:
        raise ValueError(f"{inside} inputs in groups of {size}, and {scales[0]} groups of scales")
    return size
