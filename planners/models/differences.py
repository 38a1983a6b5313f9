"""Differences between the configurations of merged or stacked models in what layers compute.

Tensors of equal shapes can always be merged. But a model with another rotary base, epsilon,
activation or number of heads computes something else with the same weights, and the output computes
with the values of only one configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mergeloom.planners.models.class_defaults import class_defaults

_COMPUTES = re.compile(
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

_TRAINED = re.compile(
    r"drop|init|coef$|loss|jitter|noise|penalty|temperature|top_p|typical_p|(?<!topk_)prob$|std$|decay|"
    r"learning_rate|time_step_(min|max|floor|scale)|threshold|version"
)
"""Keys of numbers that training, sampling or files of another kind have to do with; all others that
are no whole numbers are constants of what a layer computes."""

_BESIDE = ("rope_theta", "partial_rotary_factor")
"""Rotary settings that older files have outside the object where newer files have them."""

_LENGTH = "original_max_position_embeddings"

_LISTS = re.compile(r"((?<!ffn_)(?<!qkv_)multipliers|time_step_limit|mrope_section)$")
"""Keys of lists of such values."""

_APART = re.compile(r"quantization|compression|task_specific|generation")
"""Objects that do not affect what layers compute."""

_CUTS = re.compile(r"(^|_)(heads|n_head|head_kv|head_dim)$")
"""Keys of values that determine how a layer splits its weights."""

Path = tuple[str, ...]


class Difference(NamedTuple):
    """A value that differs between models, as text.

    ``cuts`` means that layers with one value do not work in a model with the other, even if their
    weights have equal shapes.
    """

    text: str
    cuts: bool


_USUAL = (None, False, 0, 1, 10000, "default")
"""Values that a class may well take where nothing is written."""


def differences(
    donor: str,
    configs: Mapping[str, Mapping[str, Any]],
    output: Mapping[str, Any] | None = None,
) -> Iterator[Difference]:
    """The values that affect what layers compute and differ between models.

    ``configs`` are the configurations by model name; the output gets the ``donor``'s, or ``output``
    if it was adjusted for the layers: models that agree with that do not differ.
    A value that only some of them write is compared with what the others' classes take, and
    named where that is not known.
    """
    kinds = {name: kind for name, config in configs.items() if (kind := _kind(config))}
    if donor in kinds and len(set(kinds.values())) > 1:
        effect = "the output is loaded as the first of them"
        yield Difference(_line("the class", donor, kinds, effect), False)
    written = {name: dict(values_of(config)) for name, config in configs.items()}
    settled = dict(values_of(output or {}))
    for path in {path: None for name in (donor, *written) for path in written[name]}:
        if _counts(path[-1], written, path):
            yield from _difference(donor, path, configs, written, settled)


def _counts(key: str, written: Mapping[str, Mapping[Path, Any]], path: Path) -> bool:
    return any(decides(key, values[path]) for values in written.values() if path in values)


def _difference(
    donor: str,
    path: Path,
    configs: Mapping[str, Mapping[str, Any]],
    written: Mapping[str, Mapping[Path, Any]],
    settled: Mapping[Path, Any],
) -> Iterator[Difference]:
    """How models disagree about the value at ``path``, if they do."""
    found = {name: values[path] for name, values in written.items() if path in values}
    said = {name: _text(value) for name, value in found.items()}
    unknown = []
    for name in [name for name in written if name not in found]:
        taken = _taken(configs[name], path)
        if taken is None:
            continue
        if not taken:
            unknown.append(name)
            continue
        found[name] = taken[0]
        said[name] = f"{_text(taken[0])} (the default of its class)"
    first, *others = found.values()
    key = ".".join(path)
    now = settled.get(path, first)
    if any(not _same(first, other) and not _same(now, other) for other in others):
        effect = "the output uses the first, also for layers of the others"
        if donor not in said:
            effect = f"the output's config.json, from '{donor}', does not set it"
        cuts = is_cut(path[-1]) and None not in found.values() and _of_language(path)
        yield Difference(_line(f"'{key}'", donor, said, effect), cuts)
    elif unknown and _COMPUTES.search(path[-1]) and first not in _USUAL and not is_cut(path[-1]):
        names = " and ".join(f"'{name}'" for name in sorted(unknown))
        which = " and ".join(f"'{name}'" for name in found)
        yield Difference(
            f"'{key}' is {_text(first)} in {which} and is not written in {names}, whose class is "
            "not known here: check that its default is the same",
            False,
        )


def _taken(config: Mapping[str, Any], path: Path) -> tuple[Any, ...] | None:
    """What a class takes for a value that is not written: ``()`` if the class is not known, and
    ``None`` where there is no such setting."""
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


def _kind(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    if isinstance(names, Sequence) and not isinstance(names, str) and names:
        return str(names[0])
    return None


def _line(what: str, donor: str, found: Mapping[str, str], effect: str) -> str:
    names = sorted(found, key=lambda name: name != donor)  # the donor first
    said: dict[str, list[str]] = {}
    for name in names:
        said.setdefault(found[name], []).append(f"'{name}'")
    parts = ", ".join(
        f"{text} in {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if names[3:] else "")
        for text, names in said.items()
    )
    return f"{what} differs: {parts}: {effect}"


def is_cut(key: str) -> bool:
    """Whether a value says how a layer cuts its weights."""
    return _CUTS.search(key) is not None


def decides(key: str, value: object) -> bool:
    """Whether a value affects what a layer computes; per-layer lists are handled elsewhere."""
    if key in ("rope_theta", "rope_scaling"):
        return True
    if isinstance(value, list):
        return _LISTS.search(key) is not None
    if _TRAINED.search(key):
        return False
    return isinstance(value, float) or _COMPUTES.search(key) is not None


def values_of(config: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """All values with their key paths; both spellings of rotary settings as one."""
    for key, value in config.items():
        if key == "head_dim" and value is None:
            yield (*path, key), _head_width(config)
            continue
        unused = key == "sliding_window" and config.get("use_sliding_window") is False
        unused |= key == "hidden_act" and config.get("hidden_activation") is not None  # Gemma
        if key in ("rope_parameters", "rope_scaling") or unused:
            continue
        if isinstance(value, Mapping):
            if not _APART.search(key):
                yield from values_of(value, (*path, key))
        else:
            yield (*path, key), value
    yield from _rotary_values(config, path)


def _rotary_values(config: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, Any]]:
    rotary = config.get("rope_parameters")
    if isinstance(rotary, Mapping) and not any(isinstance(v, Mapping) for v in rotary.values()):
        for key in _BESIDE:
            if rotary.get(key) is not None and key not in config:
                yield (*path, key), rotary[key]
        yield (*path, "rope_scaling"), _scaling(rotary, config)
    elif isinstance(rotary, Mapping):
        for key, value in rotary.items():
            if isinstance(value, Mapping):
                yield from values_of({"rope_parameters": value}, (*path, key))
    elif "rope_theta" in config or "rope_scaling" in config:
        yield (*path, "rope_scaling"), _scaling(config.get("rope_scaling"), config)


def _head_width(config: Mapping[str, Any]) -> int | None:
    """What classes take where a configuration has no width of heads: the part of each head."""
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return width // heads if type(width) is int and type(heads) is int and heads > 0 else None


def _scaling(rotary: object, config: Mapping[str, Any]) -> object:
    """How rotary embeddings are scaled: ``None`` if they are not. Some files have the length that
    they were scaled from beside it."""
    if not isinstance(rotary, Mapping):
        return None
    found = {key: value for key, value in rotary.items() if key not in _BESIDE}
    kind = found.pop("rope_type", found.pop("type", "default"))
    found.pop("type", None)
    if kind == "longrope" and _LENGTH in config:
        found.setdefault(_LENGTH, config[_LENGTH])
    return None if kind == "default" and not found else {"rope_type": kind, **found}


def _of_language(path: Path) -> bool:
    """Whether a value belongs to the model itself or its language part."""
    return all(part.startswith(("text", "language", "llm")) for part in path[:-1])


def _same(one: object, other: object) -> bool:
    return one == other or (one in (None, False) and other in (None, False))


def _text(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
