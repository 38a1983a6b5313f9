"""Detects checkpoints that are quantised in ways that cannot be read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.planners.models.stored_tensors import described

_FORMATS_BY_NAME = (
    ("GPTQ or AWQ", r"qweight|qzeros|g_idx", False),
    ("bitsandbytes", r"SCB|(nested_)?(absmax|quant_map)|quant_state(\..*)?", False),
    ("scales beside the weights", r"weight_scale(s|_inv|_2)?|scale_weight", False),
    ("compressed-tensors", r"weight_packed|weight_zero_point|bitmask", False),
    ("ModelOpt", r"pre_quant_scale|svdquant_lora_[ab]", False),
    ("torchao", r"_weight_(qdata|scale|zero_point)", False),
    ("quanto", r"weight\._(data|scale)", False),
    ("HQQ", r"W_q", True),
    ("EXL2", r"q_weight|q_scale_max|q_invperm", True),
    ("EXL3", r"trellis", True),
    ("AQLM", r"codes", True),
    ("VPTQ", r"indices|res_indices", True),
    ("MXFP4", r"(\w+_)?blocks", True),
)
"""Formats, patterns for the last part of a tensor's name, and whether the tensor must also hold
integers, because other models use the name too."""

_PATTERNS = tuple(
    (found, re.compile(rf"(^|\.)({name})$"), whole) for found, name, whole in _FORMATS_BY_NAME
)
_ANY_FORMAT = re.compile("|".join(pattern.pattern for _, pattern, _ in _PATTERNS))
_PLAIN_PARTS = frozenset({"weight", "bias"})
"""Last parts of most names; no format uses them, so they are skipped."""
_WEIGHT = re.compile(r"(^|[._])weight$|_proj$")
_CODE_DTYPES = {"F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"}
"""Dtypes used only for codes and scales."""


def quantised_by_config(config: Mapping[str, Any]) -> str | None:
    """The quantisation named in the configuration, as text; ``None`` if there is none."""
    for part in (config, *(part for part in config.values() if isinstance(part, Mapping))):
        settings = part.get("quantization_config")
        if isinstance(settings, Mapping):
            bits = settings.get("load_in_4bit") or settings.get("load_in_8bit")
            method = settings.get("quant_method") or ("bitsandbytes" if bits else "?")
            known = isinstance(method, str) and method.isprintable()
            return f"by {method[:40] if known else '?'}"
        settings = part.get("quantization")
        if isinstance(settings, Mapping) and {"bits", "group_size", "mode"} & settings.keys():
            return "by MLX"
        settings = part.get("compression_config")
        if isinstance(settings, Mapping) and {"config_groups", "quant_method"} & settings.keys():
            return "by compressed-tensors"
    return None


def quantised_by_tensor(tensors: Mapping[str, StoredTensor]) -> str | None:
    """The first tensor that shows quantisation, as text; ``None`` if there is none."""
    return next(_signs_of_quantisation(tensors), None)


def _signs_of_quantisation(tensors: Mapping[str, StoredTensor]) -> Iterator[str]:
    for name, stored in described(tensors).items():
        dtype, shape = stored.dtype, stored.shape
        whole = not dtype.floating
        if name.rpartition(".")[2] not in _PLAIN_PARTS and _ANY_FORMAT.search(name):
            for found, pattern, only_whole in _PATTERNS:
                if pattern.search(name) and ((len(shape) > 1 and whole) or not only_whole):
                    yield f"{found}: it has '{name}'"
        if dtype.code in _CODE_DTYPES or (whole and len(shape) > 1 and _WEIGHT.search(name)):
            mlx = name.endswith("weight") and name.removesuffix("weight") + "scales" in tensors
            yield f"{'MLX: ' if mlx else ''}'{name}' holds {dtype.code}, a type of quantised values"
