"""Which tensors of an output can be quantised, under which names, and why others cannot.

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
_NOT_LINEAR = re.compile(r"\bc_(attn|proj|fc)\b|conv|norm|embed|router|lora_|bias$")
_IN_LAYERS = re.compile(r"\.\d+\.")
_ROUTER = re.compile(r"(^|\.)(gate|shared_expert_gate)\.weight$")
_UPS = {"gate_up_proj": ("gate_proj", "up_proj"), "up_proj": ("up_proj",)}
_DOWN = "down_proj"
_NAMED_OTHERWISE = {"mixtral", "minimax", "minimax_m2", "phimoe", "lfm2_moe", "granitemoe"}
"""Model types whose separate experts are not called gate_proj, up_proj and down_proj."""
_UNKNOWN = "which of its dimensions is the input is not known"


@dataclass(frozen=True)
class InCodes:
    """The names of the codes and scales of a tensor, or of each of its ``parts`` in order. If
    ``turned``, its matrices are transposed before quantisation.
    """

    parts: tuple[tuple[str, str], ...]
    turned: bool = False


@dataclass
class Division:
    """The tensors that are ``coded``, and the reason for some that stay ``plain``, by name."""

    coded: dict[str, InCodes] = field(default_factory=dict)
    plain: dict[str, str] = field(default_factory=dict)


def divide(
    tensors: Mapping[str, OutputTensor], config: Mapping[str, Any], scheme: Scheme
) -> Division:
    """Decide which tensors of a model with this configuration are quantised; of the experts of a
    module, all or none."""
    found = Division()
    for module, group in _fused_experts(tensors):
        why = _why_plain(module, group, tensors, config, scheme)
        for last, shape in group.items():
            name = f"{module}.{last}"
            if why is None:
                found.coded[name] = _experts(module, last, shape, scheme)
            else:
                found.plain[name] = why
    done = {*found.coded, *found.plain}
    for name, tensor in tensors.items():
        shape = tensor.shape
        if len(shape) < 2 or not tensor.dtype.floating or name in done:
            continue
        if scheme.fused or _IN_LAYERS.search(name) is None or _NOT_LINEAR.search(name):
            continue
        if len(shape) > 2 or _LINEAR.search(name) is None:
            if _ROUTER.search(name) is None:
                found.plain[name] = "not known to be the weight of a linear layer"
        elif scheme.fits(shape):
            stem = name.removesuffix("weight")
            first, second = scheme.names
            found.coded[name] = InCodes(((stem + first, stem + second),))
        else:
            found.plain[name] = f"its row length is not a multiple of {scheme.columns}"
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
            if last in _UPS or last == _DOWN:
                groups.setdefault(module, {})[last] = shape
    yield from groups.items()


def _why_plain(
    module: str,
    group: Mapping[str, Shape],
    tensors: Mapping[str, OutputTensor],
    config: Mapping[str, Any],
    scheme: Scheme,
) -> str | None:
    """Why the experts of a module are not quantised; ``None`` if they are."""
    ups = [name for name in group if name in _UPS]
    if len(ups) != 1 or _DOWN not in group:
        return _UNKNOWN
    up, down, parts = group[ups[0]], group[_DOWN], len(_UPS[ups[0]])
    straight = up[2] == down[1] and up[1] == parts * down[2]
    turned = up[1] == down[2] and up[2] == parts * down[1]
    if straight is turned:
        return _UNKNOWN
    if turned is not bool(scheme.fused):
        lie = "(experts, in, out)" if turned else "(experts, out, in)"
        return f"no known program reads experts quantised this way and stored as {lie}"
    if straight and config.get("model_type") in _NAMED_OTHERWISE:
        return f"experts of '{config['model_type']}' have other names as separate tensors"
    if straight and any(f"{module}.{name}_bias" in tensors for name in group):
        return "experts with a bias have no known names as separate tensors"
    matrices = [(up[2], up[1]), (down[2], down[1])] if turned else [(down[2], up[2]), down[1:]]
    if any(rows % scheme.band or not scheme.fits((rows, row)) for rows, row in matrices):
        return f"the sizes of its matrices are not multiples of {scheme.columns}"
    return None


def _experts(module: str, last: str, shape: Shape, scheme: Scheme) -> InCodes:
    if scheme.fused:
        name = f"{module}.{last}"
        first, second = scheme.fused
        return InCodes(((name + first, name + second),), turned=True)
    codes, scales = scheme.names
    modules = [
        f"{module}.{number}.{part}"
        for number in range(shape[0])
        for part in _UPS.get(last, (_DOWN,))
    ]
    return InCodes(tuple((f"{each}.{codes}", f"{each}.{scales}") for each in modules))
