"""Quantised outputs: linear layers written as codes and scales (``quantize`` in a configuration).

The weights of linear layers inside the model's layers (`planners.output.linear_weights`) are
quantised by one of a few schemes (`planners.output.schemes`). Embeddings, heads, norms, routers and
tensors not known to be linear layers are not quantised. A weight that is an unchanged copy of an
input quantised in the same format is copied byte for byte.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from mergeloom.engine.base.dtypes import BF16, F4, F4_BYTES, F8_E8M0, F32, U8, DType
from mergeloom.engine.base.errors import Place
from mergeloom.engine.graph.graph import GraphBuilder, Load, Merge, tree
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.output.side_files import SideFile
from mergeloom.methods.inputs.dequantise import Dequantise, Scale
from mergeloom.methods.inputs.transpose import Transpose
from mergeloom.methods.kernels.quantise import Quantise
from mergeloom.methods.ops.interface import Scaling
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.models.checkpoint import Checkpoint
from mergeloom.planners.models.model import Entry, OutputTensor
from mergeloom.planners.output.linear_weights import InCodes, divide
from mergeloom.planners.output.schemes import Scheme, scheme_of, settings_of
from mergeloom.planners.recipe import Recipe

Shape = tuple[int, ...]

_NAMED = 4
"""Maximum number of names in a warning."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def quantised(
    recipe: Recipe,
    wanted: str,
    place: Place,
    models: Mapping[str, Checkpoint],
    builder: GraphBuilder,
    findings: Findings,
) -> Recipe:
    """The recipe with quantised linear layers; ``models`` are the inputs.

    Raises:
        ConfigError: it cannot be quantised.
    """
    scheme = scheme_of(wanted, recipe.output.config, models, place)
    division = divide(recipe.output.tensors, recipe.output.config, scheme)
    if not division.coded:
        raise place.error(
            "no tensor of the output is known to be the weight of a linear layer"
            if not division.plain
            else f"no tensor can be quantised this way: {_listed(division.plain)}",
            "leave 'quantize' out, and quantise the output with a program that runs the model",
        )
    tensors: dict[str, OutputTensor] = {}
    plain: list[str] = []
    for tensor in recipe.output.tensors.values():
        way = division.coded.get(tensor.name)
        if way is None:
            tensors[tensor.name] = tensor
            plain += _module_of(tensor)
            continue
        _check_words(tensor, place)
        for part in _copied(tensor, scheme, way, builder) or _coded(tensor, scheme, way, builder):
            tensors[part.name] = part
    ragged = _ragged(recipe, scheme, division.coded)
    experts = [name for name in division.coded if scheme.layout == _INT8 and ".experts." in name]
    for what, named, code in (
        (_EXPERTS, dict.fromkeys(experts, "an expert in int8"), "no-reader"),
        ("not quantised, but stored in 'dtype'", division.plain, "not-in-codes"),
        (_RAGGED, ragged, "ragged-blocks"),
    ):
        if named:
            findings.warn(place, f"{what}: {_listed(named)}", code=code)
    settings = settings_of(scheme, list(dict.fromkeys([*plain, "lm_head"])))
    config = {**recipe.output.config, "quantization_config": settings}
    return replace(
        recipe,
        output=replace(recipe.output, tensors=tensors, config=config),
        files=lambda: tuple(_with_settings(file, settings) for file in recipe.files()),
    )


_INT8 = "int-quantized"
_EXPERTS = (
    "quantised in a way that transformers (5.23) does not load, although compressed-tensors has "
    "it; it does load 'quantize: fp8'"
)
_RAGGED = (
    "quantised with smaller last blocks, as in DeepSeek-V3, which transformers' option "
    "'dequantize' reads wrongly or refuses"
)


def _module_of(tensor: OutputTensor) -> Iterator[str]:
    """The module of an unquantised weight, which programs would otherwise expect to be
    quantised."""
    dimensions = len(tensor.merge.shape)
    if dimensions == 3 and tensor.dtype.floating and not tensor.name.endswith(".weight"):
        yield tensor.name.rpartition(".")[0]
    elif dimensions in (2, 3) and tensor.name.endswith(".weight"):
        yield tensor.name.removesuffix(".weight")


def _check_words(tensor: OutputTensor, place: Place) -> None:
    """Check that a tensor is computed by machine code, which is required for quantisation.

    Raises:
        ConfigError: its method is from another package and computes by torch.
    """
    foreign = next((each for each in tree(tensor.merge) if not each.kernel.uses), None)
    if foreign is not None:
        raise place.error(
            f"'{tensor.name}' is computed by torch ({type(foreign.kernel).__name__}), and codes "
            "are written by machine code alone",
            "merge without 'quantize', then quantise the output with a 'passthrough' merge",
        )


def _ragged(recipe: Recipe, scheme: Scheme, coded: Iterable[str]) -> dict[str, str]:
    """Tensors with smaller last blocks, each with its shape."""
    found = {}
    for name in coded:
        *_, rows, row = shape = recipe.output.tensors[name].merge.shape
        sizes = (rows, scheme.band), (row, scheme.columns or row)
        if any(size > block and size % block for size, block in sizes):
            found[name] = "x".join(map(str, shape))
    return found


def _listed(names: Mapping[str, str]) -> str:
    """Names with reasons; names that differ only in numbers are combined."""
    counts: dict[tuple[str, str], int] = {}
    for name, why in names.items():
        key = _NUMBER.sub("*", name), why
        counts[key] = counts.get(key, 0) + 1
    shown = [f"'{name}' ({why})" for name, why in list(counts)[:_NAMED]]
    more = f" and {len(counts) - _NAMED} more kinds" if len(counts) > _NAMED else ""
    return ", ".join(shown) + more


def _coded(
    tensor: OutputTensor, scheme: Scheme, way: InCodes, builder: GraphBuilder
) -> Iterator[OutputTensor]:
    values = tensor.merge
    if way.turned:
        values = builder.merge([values], Transpose(), tensor.name)
    row = values.shape[-1]
    columns = scheme.columns or row
    kind = scheme.scale or (BF16 if tensor.dtype == BF16 else F32)
    scales = kind.for_blocks(-(-row // columns), scheme.band * row)
    scaling = Scaling(scheme.top, scheme.limit, kind)
    kernel = Quantise(scaling, scheme.band, columns, scales)
    merge = builder.merge([values], kernel, tensor.name)
    codes, side = _seen(values.shape, scheme, kind, way)
    yield OutputTensor(codes[0][0], merge, scheme.codes, seen=codes)
    yield OutputTensor(side[0][0], merge, scales, 1, side)


def _seen(
    shape: Shape, scheme: Scheme, scale: DType, way: InCodes
) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """The header entries of codes and scales."""
    *stack, rows, row = shape
    if len(way.parts) > 1:
        stack, rows = [], rows * math.prod(stack) // len(way.parts)
    grid = (*stack, -(-rows // scheme.band), -(-row // (scheme.columns or row)))
    kind, inside = scheme.codes, (*stack, rows, row)
    if kind is F4_BYTES:
        kind = U8
        inside = (*grid, scheme.columns // 2) if scheme.fused else (*stack, rows, row // 2)
    written = U8 if scale == F8_E8M0 else scale
    codes = tuple((name, kind, inside) for name, _ in way.parts)
    return codes, tuple((name, written, grid) for _, name in way.parts)


def _copied(
    tensor: OutputTensor, scheme: Scheme, way: InCodes, builder: GraphBuilder
) -> list[OutputTensor]:
    """The unchanged codes and scales of an input; empty if the tensor is not a copy of such."""
    inner = tensor.merge.gather.inputs[0]
    if not isinstance(tensor.merge.kernel, Copy) or not isinstance(inner, Merge):
        return []
    shape = inner.shape
    if way.turned:
        values = inner.gather.inputs[0]
        if not isinstance(inner.kernel, Transpose) or not isinstance(values, Merge):
            return []
        inner, shape = values, values.shape
    codes, side = inner.gather.inputs[0], inner.gather.side
    wanted = F4 if scheme.codes is F4_BYTES else scheme.codes
    kernel = Dequantise((Scale(scheme.band, scheme.columns),))
    if inner.kernel != kernel or not isinstance(codes, Load) or codes.dtype != wanted:
        return []
    (scale,) = side
    if scheme.scale not in (None, scale.dtype):
        return []
    seen = _seen(shape, scheme, scale.dtype, way)
    if math.prod(scale.shape) != sum(math.prod(grid) for *_, grid in seen[1]):
        return []
    return [
        OutputTensor(as_[0][0], builder.merge([load], Copy(), tensor.name), load.dtype, seen=as_)
        for load, as_ in zip((codes, scale), seen, strict=True)
    ]


def _with_settings(file: SideFile, settings: Mapping[str, Any]) -> SideFile:
    if file.name != "config.json" or not isinstance(file.content, bytes):
        return file
    config = {**json.loads(file.content), "quantization_config": settings}
    return SideFile.from_content(file.name, (json.dumps(config, indent=2) + "\n").encode())
