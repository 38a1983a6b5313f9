"""The role of a weight outside the layers, inferred from its name and shape.

Only a few roles act after the layers: the final norm, heads, poolers and classifiers. All others
(embeddings, input convolutions, projectors of other modalities) act before them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

Shape = tuple[int, ...]

_AFTER_LAYERS = re.compile(
    r"(\w*_)?lm_heads?|heads?|\w+_head|head_norm|embed_out|lm_loss|cls|(\w+_)?predictions?"
    r"|pred_layer|score|(pre_)?classifiers?|classification_head|(\w+_)?pooler|qa_outputs|logits_(proj|dense)"
    r"|sequence_summary|final_logits_bias|proj_out|project_out|output|output_projection|output_layer"
    r"|vocab_(projector|transform|layer_norm)|altup_unembed_projections|final_(linear|layer|proj)"
    r"|mtp(_\w+)?|text_projection|unembed(ding)?(_projection)?|regression_layer|gating|reward_\w+|custom_text_proj"
)
"""Modules other than norms that act after the layers, including those that predict later tokens."""

_CONNECTOR = re.compile(r"(?!vocab_)\w*(projectors?|qformer|resampler|connector|abstractor)")
"""Modules between a tower of images or sound and the language model, whatever is inside them."""

_NORM = re.compile(r"norm|^ln|_ln$|_ln_|layrnorm|^ln_f$", re.IGNORECASE)
_EARLY_NORM = re.compile(
    r"(?<!un)emb|(^|_)pre|(^|_)in(put)?(_|$)|before|conv|group|batch|proj|patch|asr|speaker",
    re.IGNORECASE,
)
"""Name parts of norms that act before the layers."""

_FINAL_NORM = re.compile(r"embedding_norm|emb_layer_norm_after")
"""Final norms with misleading names (LFM2, ESM); BigBird-Pegasus has BART's name for its own."""

_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|(word|tok|token|tokens|input|text)_?embed(ding)?s?|tokens_embed|embed_text_tokens"
    r"|embed_in|embed|shared|embeddings?|word_embed|embed_tokens\.embed|transformer\.w|w)"
    r"(\.weight|\.parametrizations\.weight\.original)$"  # Jina v3's, with adapters of tasks
    r"|(^|\.)wte\.embedding$"  # Molmo's, a parameter and no module
)
_HEAD = re.compile(
    r"(^|\.)((\w*_)?lm_head(\.(decoder|out_proj|linear))?|embed_out|output|predictions\.decoder"
    r"|decoder|proj_out|head|vocab_projector|lm_loss|output_projection|output_layer"
    r"|pred_layer\.proj|unembed(ding)?|transformer\.ff_out)\.weight$"
)
_SHARED = re.compile(r"(^|\.)shared\.weight$")
_LANGUAGE = re.compile(r"language|text|llm|decoder|thinker")
_NOT_TOKENS = re.compile(
    r"posit|_type|segment|per_layer|patch|vision|visual|image|pixel|audio|speech|codec"
)
_NO_HEAD = re.compile(
    r"dense|transform|pooler|classifier|score|qa_outputs|embed(?!_out)|wte|wpe|proj(?!_out)"
)


def module_path(name: str) -> list[str]:
    """The module path of a weight's name, without the weight itself."""
    return name.split(".")[:-1]


def acts_after(name: str, prefix: str, names: Collection[str], config: Mapping[str, Any]) -> bool:
    """Whether a weight outside the layers acts after the last of them.

    ``prefix`` is the part of layer names before the number. ``names`` (all tensor names) and
    ``config`` determine the position of a norm in two families.
    """
    modules, stack = module_path(name), module_path(prefix + "0.")
    own = len(modules)
    while own and modules[:own] != stack[:own]:
        own -= 1
    inner = modules[own:] or [name.rpartition(".")[2]]
    for module in inner:
        if _CONNECTOR.fullmatch(module):
            return False
        if _AFTER_LAYERS.fullmatch(module):
            return True
    if inner == ["decoder"]:
        return True
    if modules == ["linear"]:  # ColBERT's
        return True
    if (sense := projected_sense(name, names)) is not None and sense.search(prefix):
        return True
    if inner == ["embedding_projection"]:  # from the words' width to that of the embedding they get
        return str(config.get("model_type")).startswith("embedding_gemma2")
    norm = inner[-1]
    if len(inner) > 1 or _NORM.search(norm) is None:
        return False
    if _FINAL_NORM.fullmatch(norm):
        return True
    if norm == "layernorm_embedding" and config.get("model_type") == "bigbird_pegasus":
        return True
    if _EARLY_NORM.search(norm):
        return False
    own_module = ".".join([*modules[:own], ""])
    return not _acts_before(own_module, names, config)


_SENSES = (re.compile(r"vision|visual|image"), re.compile(r"audio|speech"))
_SENSE_PROJECTION = re.compile(r"(^|.*?\.)(visual|vision|image|audio|speech)_projection\.")


def projected_sense(name: str, names: Collection[str]) -> re.Pattern[str] | None:
    """Words for the input that a weight projects to where CLIP and its like compare it with text.

    Its module is beside such a projection of text, or beside the one tower of a model without text;
    elsewhere one of that name connects a tower with a language model. ``None`` if it is another.
    """
    found = _SENSE_PROJECTION.match(name)
    if found is None:
        return None
    inner = f"{found[1]}text_projection."
    if not any(other.startswith(inner) for other in names):
        roots = {other.partition(".")[0] for other in names} - {f"{found[2]}_projection"}
        if found[1] or len(roots) != 1:
            return None
    return next(sense for sense in _SENSES if sense.search(found[2]))


def _acts_before(own_module: str, names: Collection[str], config: Mapping[str, Any]) -> bool:
    """Whether a norm in the same module as the layers acts before them, as in two families.

    Speech encoders like wav2vec 2.0 normalise before the layers unless they are 'stable';
    DeBERTa normalises its relative embeddings.
    """
    if any(name.startswith(f"{own_module}pos_conv_embed.") for name in names):
        return config.get("do_stable_layer_norm") is not True
    return any(
        name.startswith((f"{own_module}rel_embeddings.", f"{own_module}feature_extractor."))
        for name in names
    )


def token_embedding(shapes: Mapping[str, Shape], config: Mapping[str, Any]) -> str | None:
    """The name of the token embedding among weights outside the layers, if there is one.

    Of several candidates, it is the one with as many rows as the configuration has tokens, or else
    the one that encoder and decoder share, the language model's, or the largest.
    """
    sizes = set(vocabulary_sizes(config))

    def rank(name: str) -> tuple[bool, bool, bool, int]:
        rows = shapes[name][0]
        return (
            rows in sizes,
            _SHARED.search(name) is not None,
            _LANGUAGE.search(name) is not None,
            rows,
        )

    found = [name for name, shape in shapes.items() if len(shape) == 2 and _is_embedding(name)]
    return max(found, key=rank, default=None)


def _is_embedding(name: str) -> bool:
    inner = ".".join(name.removesuffix(".parametrizations.weight.original").split(".")[-3:])
    return _EMBEDDING.search(name) is not None and _NOT_TOKENS.search(inner) is None


def output_head(shapes: Mapping[str, Shape], embedding: str | None) -> str | None:
    """The name of the output head among weights outside the layers, if there is one.

    It has a usual name, or else the shape of the embedding. The number of rows may differ, because
    an embedding may have rows for tokens that are never generated.
    """
    like = shapes[embedding] if embedding is not None else None
    others = {
        name: shape for name, shape in shapes.items() if len(shape) == 2 and name != embedding
    }
    named = [name for name in others if _HEAD.search(name)]
    if like is not None:
        named = [n for n in named if like[0] == others[n][0]] or [
            n for n in named if n.endswith("lm_head.weight")
        ]
        if not named:
            named = [
                name
                for name, shape in others.items()
                if shape == like and name.endswith(".weight") and not _NO_HEAD.search(name)
            ]
    return min(named, key=lambda name: name.count("."), default=None)


_VOCABULARY_KEYS = {"vocab_size", "text_vocab_size", "n_vocab", "padded_vocab_size", "n_tokens"}


def vocabulary_sizes(config: Mapping[str, Any]) -> Iterable[int]:
    """Vocabulary sizes in a configuration, also nested."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from vocabulary_sizes(value)
        elif key in _VOCABULARY_KEYS and type(value) is int:
            yield value


_BUFFER = re.compile(
    r"(^|\.)(\w*inv_freq|masked_bias|\w*position_ids|causal_mask|freqs_cis|(cos|sin)_cached"
    r"|(attn|attention|self)\.(bias|mask))$"
)
_BUFFER_ENDINGS = ("inv_freq", "bias", "mask", "position_ids", "freqs_cis", "_cached")


def may_be_buffer(name: str) -> bool:
    """Whether a name may be that of a constant; a quick test before `is_buffer`."""
    return name.endswith(_BUFFER_ENDINGS)


def is_buffer(name: str, shape: Shape) -> bool:
    """Whether a stored tensor is a constant, not a weight.

    These are rotary frequencies, masks and position indices; an attention bias only if it has the
    dimensions of a mask.
    """
    if not may_be_buffer(name):
        return False
    found = _BUFFER.search(name)
    return found is not None and (not found[0].endswith("bias") or len(shape) != 1)


_ONE_PART_PER_LAYER = re.compile(
    r"embed_tokens_per_layer|per_layer_model_projection|contact_head|layer_weights|scalar_mix"
    r"|mid_position_embeddings"
)


def has_part_per_layer(name: str, shape: Shape, layers: int) -> bool:
    """Whether a weight outside ``layers`` layers has a part for each of them.

    Examples are Gemma 3n's per-layer embeddings, ESM's contact head over the attention of all
    layers, weights of a sum over layers, and YOLOS' position embeddings between layers.
    """
    if _ONE_PART_PER_LAYER.search(name) is None or not layers:
        return False
    between = len(shape) > 2 and shape[0] == layers - 1
    return between or any(
        size % layers == 0 or size == layers + 1 for size in shape[-2:] if size > 1
    )


def layer_axis(name: str) -> int | None:
    """The dimension along which a weight outside the layers has one part per layer, in layer order;
    ``None`` if unknown.

    Known for Gemma 3n and 4: the embeddings of all layers are concatenated along rows, and their
    projections along columns.
    """
    if "embed_tokens_per_layer" in name:
        return 1
    return 0 if "per_layer_model_projection" in name else None


def is_shared(suffix: str) -> bool:
    """Whether a layer's tensor is shared by several layers (Zamba)."""
    return "shared_transf" in suffix
