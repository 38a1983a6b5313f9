"""Contradictions between the sizes that a configuration states for layers and their tensors.

Compared are the numbers and the width of attention heads, the inner width of feed-forward networks
and the number of experts, in the first, middle and last layer of a tower. What exactly a key means
depends on the model's class, which is not known here. So a tensor contradicts only if no meaning
that some class gives to any key of its kind explains its shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from mergeloom.planners.models.architecture import Tower
from mergeloom.planners.output.layers.described import Description

Shape = tuple[int, ...]
ShapeOf = Callable[[str], Shape]
"""The shape of a tensor, by its name or suffix."""

Sizes = Mapping[str, int]
"""Keys of a configuration and their values."""

Contradiction = tuple[Sizes, str, str]
"""What the configuration says, the suffix of a tensor, and what that has instead."""

_SIDES = {"encoder": "decoder", "decoder": "encoder"}
_HEADS = re.compile(r"(^|_)((num|n|attention|attn|query)_heads?|heads|n_head)$")
_KV_HEADS = re.compile(r"(^|_)(key_value|kv)_heads$")
_HEAD_WIDTH = re.compile(r"(^|_)(head_dim|head_size|d_head|dim_head|kv_channels|d_kv)$")
_WIDTH_PARTS = ("qk_nope_head_dim", "qk_rope_head_dim")
"""The parts of heads of multi-head latent attention, without and with rotary positions."""
_WIDTH = re.compile(r"^(hidden_size|d_model|n_embd|dim|embed_dim|hidden_dim|emb_dim)$")
_INNER = re.compile(
    r"(^|_)(intermediate_size(_mlp)?|ffn_dim|d_ff|dff|ffn_hidden_size|feed_forward_size|n_inner"
    r"|d_inner)$"
)
_EXPERTS = re.compile(r"experts?$|expert_num$")

_ATTENTION = r"^\.(?:\w+\.)*?(?:self_attn|attn|attention|SelfAttention|attention\.self|mixer)\."
_QUERY = re.compile(rf"{_ATTENTION}(?:q_proj|query|q|q_lin|query_proj|q_b_proj)\.weight$")
_KEY = re.compile(rf"{_ATTENTION}(?:k_proj|key|k|k_lin|key_proj)\.weight$")
_FUSED = re.compile(rf"{_ATTENTION}qkv_proj\.weight$")
_NETWORK = re.compile(
    r"^\.(?:mlp|feed_forward|ffn)\.(?:gate_proj|up_proj|down_proj|gate_up_proj|fc1|fc2"
    r"|w1|w2|w3|c_fc|dense_h_to_4h|lin1|lin2)\.weight$|^\.(?:intermediate\.dense|fc1)\.weight$"
)
_EXPERT = re.compile(r"^\.(?:\w+\.)*?experts\.(?:(\d+)\.|(\w+)$)")
_OTHER = re.compile(r"cross|encoder_attn|EncDec|linear|shared|adapter|lora|vision|image|mamba|conv")
"""Parts of layers that have sizes of their own."""
_OTHER_KEYS = re.compile(
    r"cross|adapter|lora(?!_rank)|vision|image|mamba|conv|resampler|index|pointer"
)
"""Words of keys about such parts."""


def size_contradictions(description: Description, shape_of: ShapeOf) -> Iterator[str]:
    """One line for each kind of size in which a tower's configuration contradicts its tensors.

    ``shape_of`` gives the shape of a tensor by its name.
    """
    stated, tower = _sizes(description), description.tower
    for kind in (_heads, _inner_width, _experts) if stated else ():
        for layer, suffixes in _kinds_of_layers(tower):
            found = next(kind(stated, suffixes, _in_layer(tower, layer, shape_of)), None)
            if found is not None and _is_uniform(tower, found[1], shape_of):
                sizes, suffix, has = found
                said = ", ".join(f"{key} {value}" for key, value in sizes.items())
                name = tower.layer_name(layer, suffix)
                yield f"the config.json of '{description.model}' says {said}, '{name}' has {has}"
                break


def _kinds_of_layers(tower: Tower) -> Iterator[tuple[int, Sequence[str]]]:
    """One layer of each kind, by its tensors that have no sizes of their own."""
    for suffixes, layer in {own: i for i, own in enumerate(tower.suffixes)}.items():
        yield layer, [suffix for suffix in suffixes if _OTHER.search(suffix) is None]


def _in_layer(tower: Tower, layer: int, shape_of: ShapeOf) -> ShapeOf:
    """The shapes of a layer's tensors by suffix."""
    return lambda suffix: shape_of(tower.layer_name(layer, suffix))


def _is_uniform(tower: Tower, suffix: str, shape_of: ShapeOf) -> bool:
    """Whether the tensor has one shape in all layers; if not, the sizes depend on the layer."""
    layers = (i for i, own in enumerate(tower.suffixes) if suffix in own)
    return len({shape_of(tower.layer_name(layer, suffix)) for layer in layers}) == 1


def _sizes(description: Description) -> Sizes:
    """The numbers that the configuration states for a tower."""
    location = description.location
    if location is None or not (location.takes_unnamed or location.side):
        return {}
    other = _SIDES.get(location.side or "")
    return {
        key: value
        for key, value in description.section.items()
        if type(value) is int
        and value > 0
        and not (other and key.startswith(other))
        and not _OTHER_KEYS.search(key)
    }


def _matching(stated: Sizes, pattern: re.Pattern[str]) -> dict[str, int]:
    return {key: value for key, value in stated.items() if pattern.search(key)}


def _heads(stated: Sizes, suffixes: Sequence[str], shape: ShapeOf) -> Iterator[Contradiction]:
    """Projections to queries and keys with other rows than heads times their width."""
    few, wide = _matching(stated, _KV_HEADS), _matching(stated, _HEAD_WIDTH)
    many = {key: n for key, n in _matching(stated, _HEADS).items() if key not in few}
    model = _matching(stated, _WIDTH)
    parts = {key: stated[key] for key in _WIDTH_PARTS if key in stated}
    widths, others = {n for key, n in wide.items() if not key.startswith("qk_")}, set[int]()
    if len(parts) == len(_WIDTH_PARTS):
        widths.add(sum(parts.values()))
    if all(key.startswith("linear") for key in wide):
        wide = {**model, **wide}
        widths |= {w // n for w in model.values() for n in many.values() if w % n == 0}
        others = {n for key, n in stated.items() if key.endswith(("_size", "_dim"))}
    queries, keys = set(many.values()), set((few or many).values())
    if "vocab_size" not in stated or any(key.startswith("linear") for key in stated):
        keys |= queries  # towers of images and linear attention have no fewer heads for keys
    if not queries or not widths or "head_ratio" in stated:
        return
    columns = {n for key, n in stated.items() if key in model or key.endswith("lora_rank")}
    for pattern, rows in (
        (_QUERY, {n * w * m for n in queries for w in widths for m in (1, 2)}),
        (_KEY, {n * w for n in keys for w in widths}),
        (_FUSED, {(n + 2 * k) * w for n in queries for k in keys | queries for w in widths}),
    ):
        possible = rows | others - set(model.values())
        for suffix in suffixes:
            found = shape(suffix) if pattern.search(suffix) else ()
            if len(found) == 2 and found[0] not in possible and found[1] in columns:
                yield {**many, **few, **wide, **parts}, suffix, f"{found[0]} rows"


def _inner_width(stated: Sizes, suffixes: Sequence[str], shape: ShapeOf) -> Iterator[Contradiction]:
    """Matrices of feed-forward networks with a side that is no number of the configuration."""
    inner, widths = _matching(stated, _INNER), set(_matching(stated, _WIDTH).values())
    if not inner or any("multiple_of" in key for key in stated):
        return
    sides = {side for n in stated.values() for side in (n, 2 * n, n // 2)} - widths
    for suffix in suffixes:
        found = set(shape(suffix)) if _NETWORK.search(suffix) else set()
        between = found - widths
        if between and between != found and sides.isdisjoint(between):
            yield inner, suffix, "x".join(map(str, shape(suffix)))


def _experts(stated: Sizes, suffixes: Sequence[str], shape: ShapeOf) -> Iterator[Contradiction]:
    """Another number of experts, each with tensors of its own or all in one tensor."""
    counts, widths = _matching(stated, _EXPERTS), _matching(stated, _WIDTH).values()
    matches = {suffix: match for suffix in suffixes if (match := _EXPERT.search(suffix))}
    numbered = {match[1]: suffix for suffix, match in matches.items() if match[1]}
    expected = {*counts.values(), sum(counts.values())}
    if not counts:
        return
    if numbered and len(numbered) not in expected:
        suffix = next(iter(numbered.values()))
        if not set(widths).isdisjoint(shape(suffix)):
            yield counts, suffix, f"{len(numbered) - 1} other experts beside it"
    for suffix in (suffix for suffix, match in matches.items() if match[2]):
        found = shape(suffix)
        if len(found) == 3 and found[0] not in expected and not set(widths).isdisjoint(found):
            yield counts, suffix, f"{found[0]} experts"
