"""Constants that depend on the depth or on a layer's number: families whose layers compute
something else at another number or in a model of another depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from mergeloom.planners.output.layers.stack import Edit


def keep_constants(edit: Edit) -> None:
    """Rewrite constants that depend on the depth so that layers compute the same as before; warn if
    that is not possible."""
    old, new = edit.donor.depth, edit.tower.depth
    place = edit.donor.place
    scale = place.get("scale_depth")
    if isinstance(scale, int | float) and not isinstance(scale, bool) and old != new:
        edit.set(
            edit.path,
            "scale_depth",
            scale * math.sqrt(new / old),
            f"{scale} -> {scale * math.sqrt(new / old):.6g}, so that what each layer adds is still "
            f"multiplied by {scale / math.sqrt(old):.6g} (scale_depth / sqrt(layers))",
        )
    if place.get("model_type") == "neomme" and place.get("residual_multiplier") is None:
        edit.set(edit.path, "residual_multiplier", (2 * old) ** -0.5)
    inner = any(".mlp.proj_in.weight" in layer for layer in edit.donor.tower.suffixes)
    if str(place.get("model_type")).endswith("_mask_decoder") and inner and old != new:
        edit.refuse(
            f"'num_hidden_layers' of '{edit.donor.model}' also counts the layers within each "
            f"feed-forward network of '{edit.tower.name}' (SAM 2)",
            "keep all its layers",
        )
    moved = [i for i, origin in enumerate(edit.tower.origins) if origin.layer != i]
    for applies, text, by_number in _FACTS:
        if applies(place) and (moved if by_number else old != new):
            edit.warn(f"'{edit.donor.model}': {text}")


_FACTS: tuple[tuple[Callable[[Mapping[str, Any]], bool], str, bool], ...] = (
    (
        lambda place: (
            place.get("scale_attn_by_inverse_layer_idx") is True
            or (
                place.get("model_type") == "imagegpt"
                and bool(place.get("scale_attn_by_inverse_layer_idx"))
            )
        ),
        "scale_attn_by_inverse_layer_idx divides attention scores by a layer's number: layers at "
        "another number attend differently than they did",
        True,
    ),
    (
        lambda place: place.get("model_type") == "diffllama",
        "the lambda of differential attention starts from a value that follows a layer's number: "
        "layers at another number attend slightly differently than they did",
        True,
    ),
    (
        lambda place: place.get("model_type") in ("minimax", "minimax_m1", "minimax_text_01"),
        "the decay of linear attention follows a layer's number and the number of layers: layers "
        "of linear attention decay differently than they did",
        True,
    ),
    (
        lambda place: place.get("model_type") == "esmc",
        "what each layer adds is scaled by the square root of the number of layers",
        False,
    ),
)
"""(condition, consequence, whether it depends on the layer number rather than the depth)."""
