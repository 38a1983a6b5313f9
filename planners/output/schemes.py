"""Quantisation schemes of outputs, and their settings in ``config.json``.

quantize    codes                 scales                                read by
fp8_block   float8_e4m3           float32, 128 x 128: weight_scale_inv  transformers' fp8
fp8         float8_e4m3           one a row: weight_scale               compressed-tensors
int8        int8                  one a row: weight_scale               compressed-tensors
mxfp4       fp4: weight_packed    powers of two, 1 x 32: weight_scale   compressed-tensors
mxfp4       fp4: NAME_blocks      powers of two, 1 x 32: NAME_scales    gpt-oss: its experts
same        as the input's, where that is one of these
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergeloom.engine.base.dtypes import BY_CODE, F4_BYTES, F8_E8M0, F32, DType
from mergeloom.engine.base.errors import Place
from mergeloom.engine.base.records import dataclass
from mergeloom.planners.models.checkpoint import Checkpoint

_E4M3, _I8 = BY_CODE["F8_E4M3"], BY_CODE["I8"]
SAME = "same"


@dataclass(frozen=True)
class Scheme:
    """One scheme: the dtype of ``codes``, and the blocks of a matrix that share a scale.

    A block has ``block_rows`` rows and ``block_columns`` columns, 0 for a whole row. For
    ``top`` and ``limit`` see `Scaling`. ``scale`` is the dtype of scales,
    ``None`` for that of the weights. ``layout`` and ``weights`` are settings in the configuration.

    ``names`` replace the ``weight`` of a module. ``fused`` are suffixes of names for fused experts;
    with them, only fused experts are quantised, which are (experts, in, out) in the model and are
    transposed. With ``allows_smaller_blocks``, the last blocks of a matrix may be smaller.
    """

    codes: DType
    names: tuple[str, str]
    block_rows: int
    block_columns: int
    top: float
    limit: float
    scale: DType | None
    layout: str
    weights: Mapping[str, Any]
    allows_smaller_blocks: bool = False
    fused: tuple[str, str] | None = None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a matrix of this shape can be quantised."""
        *_, rows, row = shape
        return self.allows_smaller_blocks or not (
            rows % self.block_rows or row % (self.block_columns or 1)
        )


def _per_channel(kind: str) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": kind, "strategy": "channel"}
    return weights | {"symmetric": True, "dynamic": False}


_CHANNEL = ("weight", "weight_scale")
_MXFP4 = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}
_MXFP4_BLOCKS = (1, 32, 2.0, 6.0, F8_E8M0)
SCHEMES = {
    "fp8_block": Scheme(
        *(_E4M3, ("weight", "weight_scale_inv"), 128, 128, 448.0, 448.0, F32, "fp8", {}),
        allows_smaller_blocks=True,
    ),
    "fp8": Scheme(
        *(_E4M3, _CHANNEL, 1, 0, 448.0, 448.0, None, "float-quantized", _per_channel("float"))
    ),
    "int8": Scheme(
        *(_I8, _CHANNEL, 1, 0, 127.0, 127.0, None, "int-quantized", _per_channel("int"))
    ),
    "mxfp4": Scheme(
        *(F4_BYTES, ("weight_packed", "weight_scale"), *_MXFP4_BLOCKS),
        "mxfp4-pack-quantized",
        _MXFP4 | {"symmetric": True, "dynamic": False, "scale_dtype": "torch.uint8"},
    ),
}
GPT_OSS = Scheme(*(F4_BYTES, ("", ""), *_MXFP4_BLOCKS, "mxfp4", {}), fused=("_blocks", "_scales"))
"""``mxfp4`` for gpt-oss."""


def choose_scheme(
    name: str, config: Mapping[str, Any], models: Mapping[str, Checkpoint], place: Place
) -> Scheme:
    """The scheme for a value of ``quantize`` and an output with this configuration.

    Raises:
        ConfigError: it is ``same``, and no input has a scheme that can be written.
    """
    known = _scheme_of_inputs(models, place) if name == SAME else name
    if known == "mxfp4" and config.get("model_type") == "gpt_oss":
        return GPT_OSS
    return SCHEMES[known]


def _scheme_of_inputs(models: Mapping[str, Checkpoint], place: Place) -> str:
    """The name of the scheme of the first quantised input."""
    for name, checkpoint in models.items():
        if checkpoint.decoded is None:
            continue
        settings = checkpoint.config.get("quantization_config")
        if not isinstance(settings, Mapping):
            settings = {}
        method, layout = settings.get("quant_method"), settings.get("format")
        if method == "mxfp4" and checkpoint.config.get("model_type") == "gpt_oss":
            return "mxfp4"
        for known, scheme in SCHEMES.items():
            blocks = settings.get("weight_block_size") == [128, 128]
            if (method == "fp8" and blocks and scheme.layout == "fp8") or (
                method == "compressed-tensors"
                and layout == scheme.layout
                and _strategies(settings) <= {scheme.weights.get("strategy")}
            ):
                return known
        raise place.error(
            f"'{name}' can be read, but not written",
            f"write one of {', '.join(SCHEMES)}",
        )
    raise place.error("no input is quantised", f"write one of {', '.join(SCHEMES)}")


def _strategies(settings: Mapping[str, Any]) -> set[Any]:
    groups = settings.get("config_groups")
    found = list(groups.values()) if isinstance(groups, Mapping) else []
    weights = [group.get("weights") for group in found if isinstance(group, Mapping)]
    return {str(each.get("strategy")) for each in weights if isinstance(each, Mapping)}


def quantisation_settings(scheme: Scheme, unquantised: list[str]) -> dict[str, Any]:
    """The quantisation settings of the configuration; ``unquantised`` are unquantised modules."""
    if scheme.layout == "mxfp4":
        return {"quant_method": "mxfp4", "modules_to_not_convert": unquantised}
    if scheme.layout == "fp8":
        return {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": [scheme.block_rows, scheme.block_columns],
            "modules_to_not_convert": unquantised,
        }
    group = {"targets": ["Linear"], "weights": dict(scheme.weights)}
    return {
        "quant_method": "compressed-tensors",
        "format": scheme.layout,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": group | {"input_activations": None, "output_activations": None}
        },
        "ignore": unquantised,
        "kv_cache_scheme": None,
    }
