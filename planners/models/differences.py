"""Differences between the configurations of merged models that change what layers compute.

Tensors of equal shapes can always be merged. But a model with another rotary base, epsilon,
activation or number of heads computes something else with the same weights, and the output has the
values of only one configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mergeloom.planners.models.class_defaults import class_defaults

_LAYER_KEYS = re.compile(
    r"(^|_)(eps|epsilon|theta|heads|n_head|head_kv|head_dim|multiplier|scaling|softcapping|base_freq|act|"
    r"activation|activation_function|act_fn|afn|rotary_(pct|dim|factor|value)|scalar|sliding_window|"
    r"logit_scale|norm_topk_prob|experts_per_tok(en)?|scaling_factor|topk_method|scor(e|ing)_func|"
    r"clip_qkv|alibi|parallel_attn|window(_size)?|attention_chunk_size|max_distance|neg_eigval|"
    r"local_attention|limit|factor|scale|moe_k|moe_topk|topk_group|n_group|qk_norm|route_norm|"
    r"norm_before_gate|mup_enabled|parallel_residual|interleaved?|multipliers|safe_gate|"
    r"(attention|attn|norm|normalization|position_embeddings?|positional_encoding)_type|"
    r"feed_forward_proj|feature_layer|select_strategy|pooling|attn_temperature_tuning|"
    r"(scale|rescale)_embeddings?|scale_(input|sqrt_depth|attn_weights)|position_biased_input|"
    r"(normalize|layer_norm)_before|pre_norm|norm_after|stable_layer_norm|post_layer_?norm|"
    r"sinusoidal_(embeddings|pos_embds)|relative_attention|causal|is_decoder|prefix_lm|"
    r"bidirectional_attention|token_dropout|long_context|mem_rope|rms_norm|expert_policy|"
    r"router_weight_on_input|before_dropping|expert_sink|selection_fn|combination_strategy)$"
)
"""Keys of values that affect what a layer computes."""

_TRAINING_KEYS = re.compile(
    r"drop|init|coef$|loss|jitter|noise|penalty|temperature|top_p|typical_p|(?<!topk_)prob$|std$|decay|"
    r"learning_rate|time_step_(min|max|floor|scale)|threshold|version"
)
"""Keys of numbers for training, sampling or other files. Every other number that is not an integer
is a constant of what a layer computes."""

_OUTER_ROTARY_KEYS = ("rope_theta", "partial_rotary_factor")
"""Rotary settings that older files have outside the object that newer files put them into."""

_ROTARY_OBJECTS = ("rope_parameters", "rope_scaling")
_ORIGINAL_LENGTH = "original_max_position_embeddings"

_LIST_KEYS = re.compile(r"((?<!ffn_)(?<!qkv_)multipliers|time_step_limit|mrope_section)$")
"""Keys of lists of such values."""

_UNRELATED_OBJECTS = re.compile(r"quantization|compression|task_specific|generation")
"""Objects that do not affect what layers compute."""

_SPLITTING_KEYS = re.compile(r"(^|_)(heads|n_head|head_kv|head_dim)$")
"""Keys of values that determine how a layer splits its weights."""

Path = tuple[str, ...]


class ConfigDifference(NamedTuple):
    """A value that differs between models, as text.

    ``is_incompatible`` says that layers with one value do not work in a model with the other, even
    if their weights have equal shapes.
    """

    text: str
    is_incompatible: bool


_COMMON_DEFAULTS = (None, False, 0, 1, 10000, "default")
"""Values that are the defaults of many classes."""


def config_differences(
    donor: str,
    configs: Mapping[str, Mapping[str, Any]],
    output: Mapping[str, Any] | None = None,
) -> Iterator[ConfigDifference]:
    """The values that affect what layers compute and differ between models.

    ``configs`` are the configurations by model name. The output gets the ``donor``'s or, if that
    was adjusted for the layers, ``output``; models that agree with it do not differ. Where only
    some configurations have a value, it is compared with the defaults of the others' classes, and
    reported if these are unknown.
    """
    kinds = {name: kind for name, config in configs.items() if (kind := class_name(config))}
    if donor in kinds and len(set(kinds.values())) > 1:
        effect = "the output is loaded as the first of them"
        yield ConfigDifference(_message("the class", donor, kinds, effect), False)
    written = {name: dict(flattened_values(config)) for name, config in configs.items()}
    output_values = dict(flattened_values(output or {}))
    for path in {path: None for name in (donor, *written) for path in written[name]}:
        if _affects_some_layer(path[-1], written, path):
            yield from _difference(donor, path, configs, written, output_values)


def _affects_some_layer(key: str, written: Mapping[str, Mapping[Path, Any]], path: Path) -> bool:
    return any(affects_layers(key, values[path]) for values in written.values() if path in values)


def _difference(
    donor: str,
    path: Path,
    configs: Mapping[str, Mapping[str, Any]],
    written: Mapping[str, Mapping[Path, Any]],
    output_values: Mapping[Path, Any],
) -> Iterator[ConfigDifference]:
    """The difference between models in the value at ``path``, if there is one."""
    found = {name: values[path] for name, values in written.items() if path in values}
    texts = {name: _value_text(value) for name, value in found.items()}
    unknown = []
    for name in [name for name in written if name not in found]:
        default = _class_default(configs[name], path)
        if default is None:
            continue
        if not default:
            unknown.append(name)
            continue
        found[name] = default[0]
        texts[name] = f"{_value_text(default[0])} (the default of its class)"
    first, *others = found.values()
    key = ".".join(path)
    output_value = output_values.get(path, first)
    if any(not _is_same(first, other) and not _is_same(output_value, other) for other in others):
        effect = "the output uses the first, also for layers of the others"
        if donor not in texts:
            effect = f"the output's config.json, from '{donor}', does not set it"
        is_incompatible = (
            splits_weights(path[-1]) and None not in found.values() and _is_of_language(path)
        )
        yield ConfigDifference(_message(f"'{key}'", donor, texts, effect), is_incompatible)
    elif (
        unknown
        and _LAYER_KEYS.search(path[-1])
        and first not in _COMMON_DEFAULTS
        and not splits_weights(path[-1])
    ):
        names = " and ".join(f"'{name}'" for name in sorted(unknown))
        which = " and ".join(f"'{name}'" for name in found)
        yield ConfigDifference(
            f"'{key}' is {_value_text(first)} in {which} and is not written in {names}, whose "
            "class is not known here: check that its default is the same",
            False,
        )


def _class_default(config: Mapping[str, Any], path: Path) -> tuple[Any, ...] | None:
    """The default of a class for a value that is not written, as a tuple of one; ``()`` if the
    class is unknown, ``None`` if it has no such setting."""
    place: Any = config
    for key in path[:-1]:
        place = place.get(key) if isinstance(place, Mapping) else None
    if not isinstance(place, Mapping) or not isinstance(place.get("model_type"), str):
        return None
    defaults = class_defaults(place["model_type"])
    if defaults is None:
        return ()
    rotary = place.get("rope_parameters"), place.get("rotary_emb_base")
    if path[-1] in ("rope_theta", "rope_scaling") and any(rotary):
        return None
    return (defaults[path[-1]],) if path[-1] in defaults else None


def class_name(config: Mapping[str, Any]) -> str | None:
    """The class of a model, by its configuration; ``None`` if it names none."""
    names = config.get("architectures")
    if isinstance(names, Sequence) and not isinstance(names, str) and names:
        return str(names[0])
    return None


def _message(what: str, donor: str, found: Mapping[str, str], effect: str) -> str:
    names = sorted(found, key=lambda name: name != donor)  # the donor first
    texts: dict[str, list[str]] = {}
    for name in names:
        texts.setdefault(found[name], []).append(f"'{name}'")
    parts = ", ".join(
        f"{text} in {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if names[3:] else "")
        for text, names in texts.items()
    )
    return f"{what} differs: {parts}: {effect}"


def splits_weights(key: str) -> bool:
    """Whether a value determines how a layer splits its weights into heads."""
    return _SPLITTING_KEYS.search(key) is not None


def affects_layers(key: str, value: object) -> bool:
    """Whether a value affects what a layer computes; per-layer lists are handled elsewhere."""
    if key in ("rope_theta", "rope_scaling"):
        return True
    if isinstance(value, list):
        return _LIST_KEYS.search(key) is not None
    if _TRAINING_KEYS.search(key):
        return False
    return isinstance(value, float) or _LAYER_KEYS.search(key) is not None


def flattened_values(config: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """All values with their key paths; old and new forms of rotary settings become one."""
    for key, value in config.items():
        if key == "head_dim" and value is None:
            yield (*path, key), _head_width(config)
            continue
        unused = key == "sliding_window" and config.get("use_sliding_window") is False
        unused |= key == "hidden_act" and config.get("hidden_activation") is not None  # Gemma
        if key in _ROTARY_OBJECTS or unused:
            continue
        if isinstance(value, Mapping):
            if not _UNRELATED_OBJECTS.search(key):
                yield from flattened_values(value, (*path, key))
        else:
            yield (*path, key), value
    yield from _rotary_values(config, path)


def with_plain_rotary(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration with rotary settings in one form: what newer files put into
    ``rope_parameters`` is outside it."""
    found = {path[0]: value for path, value in _rotary_values(config, ()) if len(path) == 1}
    if not found:
        return config
    kept = {key: value for key, value in config.items() if key not in _ROTARY_OBJECTS}
    return {**kept, **found}


def _rotary_values(config: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, Any]]:
    rotary = config.get("rope_parameters")
    if isinstance(rotary, Mapping) and not any(isinstance(v, Mapping) for v in rotary.values()):
        for key in _OUTER_ROTARY_KEYS:
            if rotary.get(key) is not None and key not in config:
                yield (*path, key), rotary[key]
        yield (*path, "rope_scaling"), _rotary_scaling(rotary, config)
    elif isinstance(rotary, Mapping):
        for key, value in rotary.items():
            if isinstance(value, Mapping):
                yield from flattened_values({"rope_parameters": value}, (*path, key))
    elif "rope_theta" in config or "rope_scaling" in config:
        yield (*path, "rope_scaling"), _rotary_scaling(config.get("rope_scaling"), config)


def _head_width(config: Mapping[str, Any]) -> int | None:
    """The width of heads that classes compute if the configuration has none."""
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return width // heads if type(width) is int and type(heads) is int and heads > 0 else None


def _rotary_scaling(rotary: object, config: Mapping[str, Any]) -> object:
    """The settings of rotary scaling; ``None`` if there is none. Some configurations have the
    original length beside it."""
    if not isinstance(rotary, Mapping):
        return None
    found = {key: value for key, value in rotary.items() if key not in _OUTER_ROTARY_KEYS}
    kind = found.pop("rope_type", found.pop("type", "default"))
    found.pop("type", None)
    if kind == "longrope" and _ORIGINAL_LENGTH in config:
        found.setdefault(_ORIGINAL_LENGTH, config[_ORIGINAL_LENGTH])
    return None if kind == "default" and not found else {"rope_type": kind, **found}


def _is_of_language(path: Path) -> bool:
    """Whether a value belongs to the model itself or its language part."""
    return all(part.startswith(("text", "language", "llm")) for part in path[:-1])


def _is_same(one: object, other: object) -> bool:
    return one == other or (one in (None, False) and other in (None, False))


def _value_text(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
