"""Chooses the tensors of an output to quantise, and the names of their codes and scales.

Weights of linear layers are recognised by their module names: matrices in the model's layers, and
experts fused into one three-dimensional tensor with transformers' names ``gate_up_proj`` or
``up_proj``, and ``down_proj``. Whether these are (experts, out, in) or (experts, in, out) follows
from both shapes together.

In published models, codes of (experts, out, in) tensors are stored expert by expert, even if the
unquantised weights are fused (Qwen3.5), and programs expect that: the codes of a fused tensor are
written as those of its experts, one after the other, under their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

from mergeloom.engine.base.records import dataclass
from mergeloom.planners.models.model import OutputTensor
from mergeloom.planners.output.schemes import Scheme

Shape = tuple[int, ...]

_LINEAR = re.compile(
    r"\.\d+\..*(_proj|_proj_with_mqa|fc[123]|w[123]|dense|dense_h_to_4h|dense_4h_to_h|query_key_value|qkv|Wqkv|"
    r"query|key|value|gate_up_proj|qkv_proj)\.weight$"
)
_OTHER_WEIGHTS = re.compile(r"\bc_(attn|proj|fc)\b|conv|norm|embed|router|lora_|bias$")
_IN_LAYERS = re.compile(r"\.\d+\.")
_ROUTER = re.compile(r"(^|\.)(gate|shared_expert_gate)\.weight$")
_UP_PROJECTIONS = {"gate_up_proj": ("gate_proj", "up_proj"), "up_proj": ("up_proj",)}
_DOWN_PROJECTION = "down_proj"
_OTHER_EXPERT_NAMES = {"mixtral", "minimax", "minimax_m2", "phimoe", "lfm2_moe", "granitemoe"}
"""Model types whose separate experts are not called gate_proj, up_proj and down_proj."""
_UNKNOWN_ORIENTATION = "which of its dimensions is the input is not known"


@dataclass(frozen=True)
class CodeNames:
    """The names of the codes and of the scales of each of the ``parts`` of a tensor, in order.

    With ``is_transposed``, its matrices are transposed before quantisation.
    """

    parts: tuple[tuple[str, str], ...]
    is_transposed: bool = False


@dataclass
class QuantisationChoice:
    """The names of codes and scales of the ``quantised`` tensors, and reasons why others are
    ``unquantised``, by tensor name."""

    quantised: dict[str, CodeNames] = field(default_factory=dict)
    unquantised: dict[str, str] = field(default_factory=dict)


def choose_quantised(
    tensors: Mapping[str, OutputTensor], config: Mapping[str, Any], scheme: Scheme
) -> QuantisationChoice:
    """Choose the tensors of a model with this configuration that are quantised; of the experts of a
    module, all or none are."""
    found = QuantisationChoice()
    for module, group in _fused_experts(tensors):
        why = _reason_not_quantised(module, group, tensors, config, scheme)
        for last, shape in group.items():
            name = f"{module}.{last}"
            if why is None:
                found.quantised[name] = _expert_code_names(module, last, shape, scheme)
            else:
                found.unquantised[name] = why
    done = {*found.quantised, *found.unquantised}
    for name, tensor in tensors.items():
        shape = tensor.shape
        if len(shape) < 2 or not tensor.dtype.floating or name in done:
            continue
        if scheme.fused or _IN_LAYERS.search(name) is None or _OTHER_WEIGHTS.search(name):
            continue
        if len(shape) > 2 or _LINEAR.search(name) is None:
            if _ROUTER.search(name) is None:
                found.unquantised[name] = "not known to be the weight of a linear layer"
        elif scheme.fits(shape):
            stem = name.removesuffix("weight")
            first, second = scheme.names
            found.quantised[name] = CodeNames(((stem + first, stem + second),))
        else:
            found.unquantised[name] = f"its row length is not a multiple of {scheme.block_columns}"
    return found


def _fused_experts(
    tensors: Mapping[str, OutputTensor],
) -> Iterator[tuple[str, dict[str, Shape]]]:
    """Modules with fused experts: the last part of each tensor name, with its shape."""
    groups: dict[str, dict[str, Shape]] = {}
    for name, tensor in tensors.items():
        shape = tensor.shape
        if len(shape) == 3 and tensor.dtype.floating:
            module, _, last = name.rpartition(".")
            if last in _UP_PROJECTIONS or last == _DOWN_PROJECTION:
                groups.setdefault(module, {})[last] = shape
    yield from groups.items()


def _reason_not_quantised(
    module: str,
    group: Mapping[str, Shape],
    tensors: Mapping[str, OutputTensor],
    config: Mapping[str, Any],
    scheme: Scheme,
) -> str | None:
    """Why the experts of a module are not quantised; ``None`` if they are."""
    ups = [name for name in group if name in _UP_PROJECTIONS]
    if len(ups) != 1 or _DOWN_PROJECTION not in group:
        return _UNKNOWN_ORIENTATION
    up, down, parts = group[ups[0]], group[_DOWN_PROJECTION], len(_UP_PROJECTIONS[ups[0]])
    is_out_in = up[2] == down[1] and up[1] == parts * down[2]
    is_transposed = up[1] == down[2] and up[2] == parts * down[1]
    if is_out_in is is_transposed:
        return _UNKNOWN_ORIENTATION
    if is_transposed is not bool(scheme.fused):
        orientation = "(experts, in, out)" if is_transposed else "(experts, out, in)"
        return f"no known program reads experts quantised this way and stored as {orientation}"
    if is_out_in and config.get("model_type") in _OTHER_EXPERT_NAMES:
        return f"experts of '{config['model_type']}' have other names as separate tensors"
    if is_out_in and any(f"{module}.{name}_bias" in tensors for name in group):
        return "experts with a bias have no known names as separate tensors"
    matrices = (
        [(up[2], up[1]), (down[2], down[1])] if is_transposed else [(down[2], up[2]), down[1:]]
    )
    if any(rows % scheme.block_rows or not scheme.fits((rows, row)) for rows, row in matrices):
        return f"the sizes of its matrices are not multiples of {scheme.block_columns}"
    return None


def _expert_code_names(module: str, last: str, shape: Shape, scheme: Scheme) -> CodeNames:
    if scheme.fused:
        name = f"{module}.{last}"
        first, second = scheme.fused
        return CodeNames(((name + first, name + second),), is_transposed=True)
    codes, scales = scheme.names
    modules = [
        f"{module}.{number}.{part}"
        for number in range(shape[0])
        for part in _UP_PROJECTIONS.get(last, (_DOWN_PROJECTION,))
    ]
    return CodeNames(tuple((f"{each}.{codes}", f"{each}.{scales}") for each in modules))
