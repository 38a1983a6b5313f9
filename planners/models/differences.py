"""Differences between the configurations of merged or stacked models in what layers compute.

Tensors of equal shapes can always be merged. But a model with another rotary base, epsilon,
activation or number of heads computes something else with the same weights, and the output computes
with the values of only one configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

_COMPUTES = re.compile(
    r"(^|_)(eps|epsilon|theta|heads|n_head|head_kv|head_dim|multiplier|scaling|softcapping|base_freq|act|"
    r"activation|activation_function|act_fn|rotary_(pct|dim|factor)|scalar|sliding_window|"
    r"logit_scale|norm_topk_prob|experts_per_tok(en)?|scaling_factor|topk_method|scor(e|ing)_func|"
    r"position_embedding_type|clip_qkv|alibi|parallel_attn|window(_size)?|attention_chunk_size|"
    r"local_attention|limit|factor|scale|moe_k|moe_topk|topk_group|n_group|qk_norm|route_norm|"
    r"norm_before_gate|mup_enabled|parallel_residual|interleaved|multipliers)$"
)
"""Keys of values that affect what a layer computes."""

_TRAINED = re.compile(
    r"drop|init|coef$|loss|jitter|noise|penalty|temperature|top_p|typical_p|(?<!topk_)prob$|std$|decay|"
    r"learning_rate|time_step_(min|max|floor|scale)|threshold|version"
)
"""Keys of numbers that training, sampling or files of another kind have to do with; all others that
are no whole numbers are constants of what a layer computes."""

_ROTARY = """
    deepseek_v2 deepseek_v3 falcon gemma gemma2 glm glm4 granite llama mistral olmo olmo2 phi phi3
    qwen2 qwen2_moe qwen3 qwen3_moe stablelm starcoder2
"""
_UNWRITTEN: Mapping[str, Mapping[str, object]] = {
    **{family: {"rope_theta": 10000.0, "rope_scaling": None} for family in _ROTARY.split()},
    "clip_text_model": {"hidden_act": "quick_gelu"},
    "clip_vision_model": {"hidden_act": "quick_gelu"},
    "t5": {"feed_forward_proj": "relu"},
}
"""What values are that a configuration leaves to its class, by ``model_type``: those that published
models are known to leave, others of the same family to write (transformers 5.23)."""

_BESIDE = ("rope_theta", "partial_rotary_factor")
"""Rotary settings that older files have outside the object where newer files have them."""

_LISTS = re.compile(r"(multipliers|time_step_limit|mrope_section)$")
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


def differences(donor: str, configs: Mapping[str, Mapping[str, Any]]) -> Iterator[Difference]:
    """The values that affect what layers compute and differ between models.

    ``configs`` are the configurations by model name; the output gets the ``donor``'s.
    A value that only some of them write is not compared, unless it is known what it is in the
    class that the others leave it to.
    """
    kinds = {name: kind for name, config in configs.items() if (kind := _kind(config))}
    if donor in kinds and len(set(kinds.values())) > 1:
        effect = "the output is loaded as the first of them"
        yield Difference(_line("the class", donor, kinds, effect), False)
    values = {name: dict(_values(config)) for name, config in configs.items()}
    own = values[donor]
    for path, value in own.items():
        found = {name: other[path] for name, other in values.items() if path in other}
        if not any(_matters(path[-1], each) for each in found.values()):
            continue
        if any(not _same(value, other) for other in found.values()):
            effect = "the output computes with the first, for layers of the others too"
            text = _line(f"'{'.'.join(path)}'", donor, found, effect)
            cuts = _CUTS.search(path[-1]) is not None and None not in found.values()
            yield Difference(text, cuts and _of_language(path))


def _kind(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    if isinstance(names, Sequence) and not isinstance(names, str) and names:
        return str(names[0])
    return None


def _line(what: str, donor: str, found: Mapping[str, Any], effect: str) -> str:
    names = [donor, *(name for name in found if name != donor)]
    said: dict[str, list[str]] = {}
    for name in names:
        said.setdefault(_text(found[name]), []).append(f"'{name}'")
    parts = ", ".join(
        f"{text} in {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if names[3:] else "")
        for text, names in said.items()
    )
    return f"{what} differs: {parts}: {effect}"


def _matters(key: str, value: object) -> bool:
    """Whether a value affects what a layer computes; per-layer lists are handled elsewhere."""
    if key in ("rope_theta", "rope_scaling"):
        return True
    if isinstance(value, list):
        return _LISTS.search(key) is not None
    if _TRAINED.search(key):
        return False
    return isinstance(value, float) or _COMPUTES.search(key) is not None


def _values(config: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """All values with their key paths; both spellings of rotary settings as one."""
    given = set()
    for found, value in _written(config, path):
        given.add(found)
        yield found, value
    for key, value in _UNWRITTEN.get(str(config.get("model_type")), {}).items():
        if (*path, key) not in given:
            yield (*path, key), value


def _written(config: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, Any]]:
    rotary = config.get("rope_parameters")
    for key, value in config.items():
        if key == "head_dim" and value is None:
            yield (*path, key), _head_width(config)
            continue
        unused = key == "sliding_window" and config.get("use_sliding_window") is False
        if key in ("rope_parameters", "rope_scaling") or unused:
            continue
        if isinstance(value, Mapping):
            if not _APART.search(key):
                yield from _values(value, (*path, key))
        else:
            yield (*path, key), value
    if isinstance(rotary, Mapping) and not any(isinstance(v, Mapping) for v in rotary.values()):
        for key in _BESIDE:
            if rotary.get(key) is not None and key not in config:
                yield (*path, key), rotary[key]
        yield (*path, "rope_scaling"), _scaling(rotary)
    elif isinstance(rotary, Mapping):
        for key, value in rotary.items():
            if isinstance(value, Mapping):
                yield from _values({"rope_parameters": value}, (*path, key))
    elif "rope_theta" in config or "rope_scaling" in config:
        yield (*path, "rope_scaling"), _scaling(config.get("rope_scaling"))


def _head_width(config: Mapping[str, Any]) -> int | None:
    """What classes take where a configuration has no width of heads: the part of each head."""
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return width // heads if type(width) is int and type(heads) is int and heads > 0 else None


def _scaling(rotary: object) -> object:
    """The scaling of rotary embeddings; ``None`` if there is none."""
    if not isinstance(rotary, Mapping):
        return None
    found = {key: value for key, value in rotary.items() if key not in _BESIDE}
    kind = found.pop("rope_type", found.pop("type", "default"))
    found.pop("type", None)
    return None if kind == "default" and not found else {"rope_type": kind, **found}


def _of_language(path: Path) -> bool:
    """Whether a value belongs to the model itself or its language part."""
    return all(part.startswith(("text", "language", "llm")) for part in path[:-1])


def _same(one: object, other: object) -> bool:
    return one == other or (one in (None, False) and other in (None, False))


def _text(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
