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
from mergeloom.planners.output.linear_weights import CodeNames, choose_quantised
from mergeloom.planners.output.schemes import Scheme, choose_scheme, quantisation_settings
from mergeloom.planners.recipe import Recipe

Shape = tuple[int, ...]

_MAX_NAMES = 4
"""Maximum number of names in a warning."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def quantise_output(
    recipe: Recipe,
    scheme_name: str,
    place: Place,
    models: Mapping[str, Checkpoint],
    builder: GraphBuilder,
    findings: Findings,
) -> Recipe:
    """The recipe with quantised linear layers; ``scheme_name`` is the value of ``quantize``,
    ``models`` are the inputs.

    Raises:
        ConfigError: it cannot be quantised.
    """
    scheme = choose_scheme(scheme_name, recipe.output.config, models, place)
    choice = choose_quantised(recipe.output.tensors, recipe.output.config, scheme)
    if not choice.quantised:
        raise place.error(
            "no tensor of the output is known to be the weight of a linear layer"
            if not choice.unquantised
            else f"no tensor can be quantised this way: {_listed_names(choice.unquantised)}",
            "leave 'quantize' out, and quantise the output with a program that runs the model",
        )
    tensors: dict[str, OutputTensor] = {}
    plain: list[str] = []
    for tensor in recipe.output.tensors.values():
        code_names = choice.quantised.get(tensor.name)
        if code_names is None:
            tensors[tensor.name] = tensor
            plain += _modules_not_quantised(tensor)
            continue
        _check_machine_code(tensor, place)
        for part in _copied_tensors(tensor, scheme, code_names, builder) or _quantised_tensors(
            tensor, scheme, code_names, builder
        ):
            tensors[part.name] = part
    smaller_blocks = _with_smaller_blocks(recipe, scheme, choice.quantised)
    experts = [name for name in choice.quantised if scheme.layout == _INT8 and ".experts." in name]
    for what, named, code in (
        (_EXPERTS_WARNING, dict.fromkeys(experts, "an expert in int8"), "no-reader"),
        ("not quantised, but stored in 'dtype'", choice.unquantised, "not-in-codes"),
        (_SMALLER_BLOCKS_WARNING, smaller_blocks, "ragged-blocks"),
    ):
        if named:
            findings.warn(place, f"{what}: {_listed_names(named)}", code=code)
    settings = quantisation_settings(scheme, list(dict.fromkeys([*plain, "lm_head"])))
    config = {**recipe.output.config, "quantization_config": settings}
    return replace(
        recipe,
        output=replace(recipe.output, tensors=tensors, config=config),
        files=lambda: tuple(_with_quantisation_settings(file, settings) for file in recipe.files()),
    )


_INT8 = "int-quantized"
_EXPERTS_WARNING = (
    "quantised in a way that transformers (5.23) does not load, although compressed-tensors has "
    "it; it does load 'quantize: fp8'"
)
_SMALLER_BLOCKS_WARNING = (
    "quantised with smaller last blocks, as in DeepSeek-V3, which transformers' option "
    "'dequantize' reads wrongly or refuses"
)


def _modules_not_quantised(tensor: OutputTensor) -> Iterator[str]:
    """The module of an unquantised weight; programs expect quantised modules unless it is
    listed."""
    dimensions = len(tensor.merge.shape)
    if dimensions == 3 and tensor.dtype.floating and not tensor.name.endswith(".weight"):
        yield tensor.name.rpartition(".")[0]
    elif dimensions in (2, 3) and tensor.name.endswith(".weight"):
        yield tensor.name.removesuffix(".weight")


def _check_machine_code(tensor: OutputTensor, place: Place) -> None:
    """Check that a tensor is computed by machine code, which is required for quantisation.

    Raises:
        ConfigError: it is computed by torch, as by a method of another package.
    """
    computed_by_torch = next((each for each in tree(tensor.merge) if not each.kernel.uses), None)
    if computed_by_torch is not None:
        raise place.error(
            f"'{tensor.name}' is computed by torch ({type(computed_by_torch.kernel).__name__}), "
            "and codes are written by machine code alone",
            "merge without 'quantize', then quantise the output with a 'passthrough' merge",
        )


def _with_smaller_blocks(recipe: Recipe, scheme: Scheme, coded: Iterable[str]) -> dict[str, str]:
    """Tensors with smaller last blocks, each with its shape."""
    found = {}
    for name in coded:
        *_, rows, row = shape = recipe.output.tensors[name].merge.shape
        sizes = (rows, scheme.block_rows), (row, scheme.block_columns or row)
        if any(size > block and size % block for size, block in sizes):
            found[name] = "x".join(map(str, shape))
    return found


def _listed_names(names: Mapping[str, str]) -> str:
    """Names with reasons; names that differ only in numbers are combined."""
    counts: dict[tuple[str, str], int] = {}
    for name, why in names.items():
        key = _NUMBER.sub("*", name), why
        counts[key] = counts.get(key, 0) + 1
    shown = [f"'{name}' ({why})" for name, why in list(counts)[:_MAX_NAMES]]
    more = f" and {len(counts) - _MAX_NAMES} more kinds" if len(counts) > _MAX_NAMES else ""
    return ", ".join(shown) + more


def _quantised_tensors(
    tensor: OutputTensor, scheme: Scheme, code_names: CodeNames, builder: GraphBuilder
) -> Iterator[OutputTensor]:
    values = tensor.merge
    if code_names.is_transposed:
        values = builder.merge([values], Transpose(), tensor.name)
    row = values.shape[-1]
    columns = scheme.block_columns or row
    kind = scheme.scale or (BF16 if tensor.dtype == BF16 else F32)
    scales = kind.for_blocks(-(-row // columns), scheme.block_rows * row)
    scaling = Scaling(scheme.top, scheme.limit, kind)
    kernel = Quantise(scaling, scheme.block_rows, columns, scales)
    merge = builder.merge([values], kernel, tensor.name)
    codes, side = _header_entries(values.shape, scheme, kind, code_names)
    yield OutputTensor(codes[0][0], merge, scheme.codes, header_entries=codes)
    yield OutputTensor(side[0][0], merge, scales, 1, side)


def _header_entries(
    shape: Shape, scheme: Scheme, scale: DType, code_names: CodeNames
) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """The header entries of codes and scales."""
    *stack, rows, row = shape
    if len(code_names.parts) > 1:
        stack, rows = [], rows * math.prod(stack) // len(code_names.parts)
    grid = (*stack, -(-rows // scheme.block_rows), -(-row // (scheme.block_columns or row)))
    kind, inside = scheme.codes, (*stack, rows, row)
    if kind is F4_BYTES:
        kind = U8
        inside = (*grid, scheme.block_columns // 2) if scheme.fused else (*stack, rows, row // 2)
    written = U8 if scale == F8_E8M0 else scale
    codes = tuple((name, kind, inside) for name, _ in code_names.parts)
    return codes, tuple((name, written, grid) for _, name in code_names.parts)


def _copied_tensors(
    tensor: OutputTensor, scheme: Scheme, code_names: CodeNames, builder: GraphBuilder
) -> list[OutputTensor]:
    """Codes and scales of an input, unchanged; empty if the tensor is not a copy of a quantised
    weight in the same format."""
    inner = tensor.merge.gather.inputs[0]
    if not isinstance(tensor.merge.kernel, Copy) or not isinstance(inner, Merge):
        return []
    shape = inner.shape
    if code_names.is_transposed:
        values = inner.gather.inputs[0]
        if not isinstance(inner.kernel, Transpose) or not isinstance(values, Merge):
            return []
        inner, shape = values, values.shape
    codes, side = inner.gather.inputs[0], inner.gather.side
    scheme_name = F4 if scheme.codes is F4_BYTES else scheme.codes
    kernel = Dequantise((Scale(scheme.block_rows, scheme.block_columns),))
    if inner.kernel != kernel or not isinstance(codes, Load) or codes.dtype != scheme_name:
        return []
    (scale,) = side
    if scheme.scale not in (None, scale.dtype):
        return []
    header_entries = _header_entries(shape, scheme, scale.dtype, code_names)
    if math.prod(scale.shape) != sum(math.prod(grid) for *_, grid in header_entries[1]):
        return []
    return [
        OutputTensor(
            entry[0][0],
            builder.merge([load], Copy(), tensor.name),
            load.dtype,
            header_entries=entry,
        )
        for load, entry in zip((codes, scale), header_entries, strict=True)
    ]


def _with_quantisation_settings(file: SideFile, settings: Mapping[str, Any]) -> SideFile:
    if file.name != "config.json" or not isinstance(file.content, bytes):
        return file
    config = {**json.loads(file.content), "quantization_config": settings}
    return SideFile.from_content(file.name, (json.dumps(config, indent=2) + "\n").encode())
