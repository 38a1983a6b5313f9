"""An output whose linear layers are written as codes and scales: ``quantize`` of a configuration.

    quantize    codes                 scales                                read by
    fp8_block   float8_e4m3           float32, 128 x 128: weight_scale_inv  transformers' fp8
    fp8         float8_e4m3           one a row: weight_scale               compressed-tensors
    int8        int8                  one a row: weight_scale               compressed-tensors
    mxfp4       fp4: weight_packed    powers of two, 1 x 32: weight_scale   compressed-tensors
    same        as the input's, where that is one of these

What is written are the weights of linear layers inside the model's layers. Embeddings, heads,
norms, routers and whatever is not known to be a linear layer stay as they are. A weight that is a
copy of an input's, in the same codes, is copied byte for byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from mergeloom.engine.base.dtypes import BF16, BY_CODE, F4, F4_BYTES, F8_E8M0, F32, U8, DType
from mergeloom.engine.base.errors import Place
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import GraphBuilder, Load, Merge
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.output.side_files import SideFile
from mergeloom.methods.inputs.dequantise import Dequantise, Scale
from mergeloom.methods.kernels.quantise import Quantise
from mergeloom.methods.ops.words import Scaling
from mergeloom.planners.models.checkpoint import Checkpoint
from mergeloom.planners.models.model import OutputTensor
from mergeloom.planners.recipe import Recipe

_E4M3, _I8 = BY_CODE["F8_E4M3"], BY_CODE["I8"]
SAME = "same"


@dataclass(frozen=True)
class Scheme:
    """One kind of codes; ``columns`` is 0 for a whole row, ``scale`` ``None`` where the scale has
    the type of the weights. ``method`` and ``weights`` are what the configuration says of it."""

    codes: DType
    names: tuple[str, str]
    band: int
    columns: int
    top: float
    limit: float
    scale: DType | None
    layout: str
    weights: Mapping[str, Any]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a matrix can be written so: in whole blocks, since of ragged ones readers differ
        in which elements a scale is for."""
        return len(shape) == 2 and not (shape[0] % self.band or shape[1] % (self.columns or 1))


def _channels(kind: str) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": kind, "strategy": "channel"}
    return weights | {"symmetric": True, "dynamic": False}


_CHANNEL = ("weight", "weight_scale")
_MXFP4 = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}
SCHEMES = {
    "fp8_block": Scheme(
        *(_E4M3, ("weight", "weight_scale_inv"), 128, 128, 448.0, 448.0, F32, "fp8", {})
    ),
    "fp8": Scheme(
        *(_E4M3, _CHANNEL, 1, 0, 448.0, 448.0, None, "float-quantized", _channels("float"))
    ),
    "int8": Scheme(*(_I8, _CHANNEL, 1, 0, 127.0, 127.0, None, "int-quantized", _channels("int"))),
    "mxfp4": Scheme(
        *(F4_BYTES, ("weight_packed", "weight_scale"), 1, 32, 2.0, 6.0, F8_E8M0),
        "mxfp4-pack-quantized",
        _MXFP4 | {"symmetric": True, "dynamic": False, "scale_dtype": "torch.uint8"},
    ),
}

_LINEAR = re.compile(
    r"\.\d+\..*(_proj|fc[123]|w[123]|dense|dense_h_to_4h|dense_4h_to_h|query_key_value|qkv|Wqkv|"
    r"query|key|value|gate_up_proj|qkv_proj)\.weight$"
)
_NOT_LINEAR = re.compile(r"\bc_(attn|proj|fc)\b|conv|norm|embed|router|lora_")


def quantised(
    recipe: Recipe,
    wanted: str,
    place: Place,
    models: Mapping[str, Checkpoint],
    builder: GraphBuilder,
) -> Recipe:
    """The same output with its linear layers in codes; ``models`` are the inputs.

    Raises:
        ConfigError: it cannot be.
    """
    scheme = SCHEMES[_scheme_of(models, place) if wanted == SAME else wanted]
    tensors: dict[str, OutputTensor] = {}
    plain: list[str] = []
    found = False
    for tensor in recipe.output.tensors.values():
        if not _is_linear(tensor) or not scheme.fits(tensor.merge.shape):
            tensors[tensor.name] = tensor
            if len(tensor.merge.shape) == 2 and tensor.name.endswith(".weight"):
                plain.append(tensor.name.removesuffix(".weight"))
            continue
        found = True
        for part in _copied(tensor, scheme, builder) or _coded(tensor, scheme, builder):
            tensors[part.name] = part
    if not found:
        raise place.error(
            "no tensor of the output is known to be the weight of a linear layer",
            "leave 'quantize' out, and quantise the output by a program that runs the model",
        )
    settings = _settings(scheme, list(dict.fromkeys([*plain, "lm_head"])))
    config = {**recipe.output.config, "quantization_config": settings}
    return replace(
        recipe,
        output=replace(recipe.output, tensors=tensors, config=config),
        files=lambda: tuple(_with_settings(file, settings) for file in recipe.files()),
    )


def _is_linear(tensor: OutputTensor) -> bool:
    name = tensor.name
    return (
        tensor.dtype.floating
        and _LINEAR.search(name) is not None
        and _NOT_LINEAR.search(name) is None
    )


def _coded(tensor: OutputTensor, scheme: Scheme, builder: GraphBuilder) -> Iterator[OutputTensor]:
    rows, row = tensor.merge.shape
    columns = scheme.columns or row
    down, across = -(-rows // scheme.band), -(-row // columns)
    kind = scheme.scale or (BF16 if tensor.dtype == BF16 else F32)
    scales = kind.for_blocks(across, scheme.band * row)
    scaling = Scaling(scheme.top, scheme.limit, kind)
    kernel = Quantise(scaling, scheme.band, columns, scales)
    merge = builder.merge([tensor.merge], kernel, tensor.name)
    stem = tensor.name.removesuffix("weight")
    seen = (U8, (rows, row // 2)) if scheme.codes is F4_BYTES else (scheme.codes, (rows, row))
    yield OutputTensor(stem + scheme.names[0], merge, scheme.codes, seen=seen)
    written = U8 if kind is F8_E8M0 else kind
    yield OutputTensor(stem + scheme.names[1], merge, scales, 1, (written, (down, across)))


def _copied(tensor: OutputTensor, scheme: Scheme, builder: GraphBuilder) -> list[OutputTensor]:
    """The codes and scales of an input, as they are; nothing if the tensor is no copy of such."""
    inner = tensor.merge.gather.inputs[0]
    if not isinstance(tensor.merge.kernel, Copy) or not isinstance(inner, Merge):
        return []
    codes, side = inner.gather.inputs[0], inner.gather.side
    wanted = F4 if scheme.codes is F4_BYTES else scheme.codes
    kernel = Dequantise((Scale(scheme.band, scheme.columns),))
    if inner.kernel != kernel or not isinstance(codes, Load) or codes.dtype != wanted:
        return []
    (scale,) = side
    if scheme.scale not in (None, scale.dtype):
        return []
    rows, row = tensor.merge.shape
    stem = tensor.name.removesuffix("weight")
    columns = scheme.columns or row
    grid = (-(-rows // scheme.band), -(-row // columns))
    seen = (U8, (rows, row // 2)) if wanted is F4 else (wanted, (rows, row))
    written = U8 if scale.dtype == F8_E8M0 else scale.dtype
    parts = ((codes, seen), (scale, (written, grid)))
    return [
        OutputTensor(stem + name, builder.merge([load], Copy(), tensor.name), load.dtype, seen=as_)
        for name, (load, as_) in zip(scheme.names, parts, strict=True)
    ]


def _scheme_of(models: Mapping[str, Checkpoint], place: Place) -> str:
    """The scheme of the first input that is in codes."""
    for name, checkpoint in models.items():
        if checkpoint.decoded is None:
            continue
        settings = checkpoint.config.get("quantization_config")
        if not isinstance(settings, Mapping):
            settings = {}
        method, layout = settings.get("quant_method"), settings.get("format")
        for known, scheme in SCHEMES.items():
            blocks = settings.get("weight_block_size") == [128, 128]
            if (method == "fp8" and blocks and scheme.layout == "fp8") or (
                method == "compressed-tensors"
                and layout == scheme.layout
                and _strategies(settings) <= {scheme.weights.get("strategy")}
            ):
                return known
        raise place.error(
            f"the codes of '{name}' are read and not written",
            f"write one of {', '.join(SCHEMES)}",
        )
    raise place.error("no input is in codes", f"write one of {', '.join(SCHEMES)}")


def _strategies(settings: Mapping[str, Any]) -> set[Any]:
    groups = settings.get("config_groups")
    found = list(groups.values()) if isinstance(groups, Mapping) else []
    weights = [group.get("weights") for group in found if isinstance(group, Mapping)]
    return {str(each.get("strategy")) for each in weights if isinstance(each, Mapping)}


def _settings(scheme: Scheme, plain: list[str]) -> dict[str, Any]:
    """What the configuration says of the codes; ``plain`` are modules that have none."""
    if scheme.layout == "fp8":
        return {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": [scheme.band, scheme.columns],
            "modules_to_not_convert": plain,
        }
    group = {"targets": ["Linear"], "weights": dict(scheme.weights)}
    return {
        "quant_method": "compressed-tensors",
        "format": scheme.layout,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": group | {"input_activations": None, "output_activations": None}
        },
        "ignore": plain,
        "kv_cache_scheme": None,
    }


def _with_settings(file: SideFile, settings: Mapping[str, Any]) -> SideFile:
    if file.name != "config.json" or not isinstance(file.content, bytes):
        return file
    config = {**json.loads(file.content), "quantization_config": settings}
    return SideFile.made(file.name, (json.dumps(config, indent=2) + "\n").encode())
