"""Constants that depend on the depth or on a layer's number.

Layers of some families compute something else at another number, or in a model of another depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from mergeloom.planners.output.layers.stack import Edit


def preserve_constants(edit: Edit) -> None:
    """Rewrite constants that depend on the depth so that layers compute the same as before; warn if
    that is not possible."""
    old, new = edit.donor.depth, edit.tower.depth
    section = edit.donor.section
    scale = section.get("scale_depth")
    if isinstance(scale, int | float) and not isinstance(scale, bool) and old != new:
        edit.set(
            edit.path,
            "scale_depth",
            scale * math.sqrt(new / old),
            f"{scale} -> {scale * math.sqrt(new / old):.6g}, so that what each layer adds is still "
            f"multiplied by {scale / math.sqrt(old):.6g} (scale_depth / sqrt(layers))",
        )
    if section.get("model_type") == "neomme" and section.get("residual_multiplier") is None:
        edit.set(edit.path, "residual_multiplier", (2 * old) ** -0.5)
    inner = any(".mlp.proj_in.weight" in layer for layer in edit.donor.tower.suffixes)
    if str(section.get("model_type")).endswith("_mask_decoder") and inner and old != new:
        edit.refuse(
            f"'num_hidden_layers' of '{edit.donor.model}' also counts the layers within each "
            f"feed-forward network of '{edit.tower.name}' (SAM 2)",
            "keep all its layers",
        )
    _compare_scales(edit, scale)
    if edit.tower is edit.towers[0]:
        _warn_of_images(edit, edit.donor.config)
    moved = any(origin.layer != i for i, origin in enumerate(edit.tower.origins))
    other_depth = any(origin.description.depth != new for origin in edit.tower.origins)
    changed = {NUMBER: moved, DEPTH: other_depth, EITHER: moved or other_depth}
    for applies, text, cause in _CONSEQUENCES:
        if applies(section) and changed[cause]:
            edit.warn(f"'{edit.donor.model}': {text}")


def _warn_of_images(edit: Edit, config: Mapping[str, Any]) -> None:
    """Warn if what is added to the words at certain layers is now added at others: features of
    vision layers at the first layers (Qwen3-VL), or at listed ones (Granite Vision 4)."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            _warn_of_images(edit, value)
        targets: list[Any] = []
        if isinstance(value, list | tuple) and key == "deepstack_visual_indexes":
            targets = list(range(len(value)))
        elif isinstance(value, list | tuple) and key == "spatial_target_layers":
            targets = list(value)
        elif isinstance(value, list | tuple) and key == "deepstack_layer_map":
            targets = [pair[1] for pair in value if isinstance(pair, list | tuple) and pair[1:]]
        origins = dict(enumerate(edit.tower.origins))
        other = [i for i in targets if i not in origins or origins[i].layer != i]
        if other:
            made = f"is made from {origins[other[0]]}" if other[0] in origins else "is missing"
            edit.warn(
                f"'{key}': features of images are added at layers "
                f"{', '.join(map(str, targets))} of '{edit.tower.name}', and layer {other[0]} of "
                f"the output {made}: images are seen in another way than before"
            )


def _compare_scales(edit: Edit, scale: object) -> None:
    """Warn of layers from a model of another depth, where the same ``scale_depth`` is another
    factor."""
    for origin in edit.tower.origins:
        if (
            origin.description.section.get("scale_depth") == scale
            and origin.description.depth != edit.donor.depth
        ):
            if scale is not None:
                edit.warn(
                    f"'scale_depth' is divided by the square root of the number of layers, which "
                    f"is {edit.donor.depth} in '{edit.donor.model}' and "
                    f"{origin.description.depth} in "
                    f"'{origin.description.model}': the output computes with the first, for "
                    "layers of the others too"
                )
            return


def _has_slopes(section: Mapping[str, Any]) -> bool:
    """Whether linear attention has fixed slopes (MiniMax 01 and M1, Ling-linear, Ling 2.5)."""
    family = str(section.get("model_type"))
    ling = "linear" in family or "V2_5" in str(section.get("architectures"))
    return family in ("minimax", "minimax_m1", "minimax_text_01") or (
        "layer_group_size" in section and ling
    )


_MIDDLE = ("granite_speech_encoder", "granite_speech_plus_encoder", "granite_speech5_encoder")
"""Encoders whose first half ends in predictions that the second half continues from."""

NUMBER, DEPTH, EITHER = "number", "depth", "either"
"""What must change for a consequence: a layer's number, the number of layers, or one of them."""

_CONSEQUENCES: tuple[tuple[Callable[[Mapping[str, Any]], bool], str, str], ...] = (
    (
        lambda section: (
            section.get("scale_attn_by_inverse_layer_idx") is True
            or (
                section.get("model_type") == "imagegpt"
                and bool(section.get("scale_attn_by_inverse_layer_idx"))
            )
        ),
        "scale_attn_by_inverse_layer_idx divides attention scores by a layer's number: layers at "
        "another number attend differently than before",
        NUMBER,
    ),
    (
        lambda section: section.get("model_type") == "diffllama",
        "the lambda of differential attention starts from a value that follows a layer's number: "
        "layers at another number attend slightly differently than before",
        NUMBER,
    ),
    (
        lambda section: (
            str(section.get("model_type")) in ("big_bird", "bigbird_pegasus")
            and section.get("attention_type", "block_sparse") == "block_sparse"
        ),
        "the random blocks of sparse attention follow a layer's number: layers at another number "
        "attend to other blocks than before",
        NUMBER,
    ),
    (
        _has_slopes,
        "the decay of linear attention follows a layer's number and the number of layers: layers "
        "of linear attention decay differently than before",
        EITHER,
    ),
    (
        lambda section: section.get("model_type") == "beam",
        "what each layer adds is weighted by its number: layers at another number compute "
        "something else than before",
        NUMBER,
    ),
    (
        lambda section: str(section.get("model_type")) in _MIDDLE,
        "the predictions halfway are added after the middle layer, which is another one now",
        DEPTH,
    ),
    (
        lambda section: section.get("model_type") == "esmc",
        "what each layer adds is scaled by the square root of the number of layers",
        DEPTH,
    ),
    (
        lambda section: "position_encoding_2d" in section and "inner_hidden_size" in section,
        "each layer of ChatGLM-6B multiplies its input by the square root of twice the number of "
        "layers: all layers compute something else than they did",
        DEPTH,
    ),
    (
        lambda section: section.get("head_multi") is True and "start_layer" in section,
        "the class has a head for each layer from 'start_layer' on, and the output those that the "
        "model has, not one for each of its layers",
        DEPTH,
    ),
    (
        lambda section: (
            isinstance(section.get("qkv_multipliers"), list)
            and isinstance(section.get("num_query_heads"), list)
        ),
        "the class of OpenELM computes the number of heads of each layer from 'qkv_multipliers' "
        "and the number of layers, whatever 'num_query_heads' lists: its repository's code does "
        "not load layers at other places, programs that read the list do",
        EITHER,
    ),
)
"""(condition, consequence, what it depends on)."""
