"""Rules for layer kinds in each model family, by ``model_type``.

The facts are from configuration and modelling code of transformers 5.23, and the tests compare
them with those classes. Settings of other families (with code in the model's repository) are
interpreted as in the family that the key is known from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mergeloom.planners.output.layers.rules import (
    DENSE,
    FULL,
    KEYS_AND_VALUES,
    LAYERS,
    LINEAR,
    MLPS,
    OWN,
    SLIDING,
    SPARSE,
    Config,
    Kinds,
    Rule,
    all_of_kind,
    alternating_windows_until,
    by_layer_number,
    every_nth,
    every_nth_from,
    first_layers,
    integer,
    repeated_pattern,
    sharing_last,
    sparse_from,
    sparse_interval,
    sparse_steps,
    unless_listed,
    windows_from,
)

ALTERNATING = every_nth(None, 2)
_FOURTH_FIRST = every_nth(None, 4, shift=0)
_LINEAR_BUT_FOURTH = every_nth("full_attention_interval", 4, FULL, LINEAR)
_ROPE = every_nth("no_rope_layer_interval", 4, 0, 1, name="no_rope_layers")
_KV_SHARED = sharing_last("num_kv_shared_layers", 0)
_HASH, _CLA = ("num_hash_layers",), ("use_cla", "cla_share_factor")
_ONE_DENSE, _THREE_DENSE = first_layers(None, 1), first_layers(None, 3)


def _chunked(config: Config, depth: int) -> Kinds | None:
    """Llama 4: layers with rotary positions use chunked attention."""
    listed = config.get("no_rope_layers")
    rope = listed if isinstance(listed, list) and listed else _ROPE.of(config, depth)
    return None if rope is None else ["chunked_attention" if use else FULL for use in rope[:depth]]


def _window_without_rope(config: Config, depth: int) -> Kinds | None:
    """SmolLM 3: layers without rotary positions have windows, if windows are used."""
    listed = config.get("no_rope_layers")
    rope = listed if isinstance(listed, list) else _ROPE.of(config, depth)
    uses = bool(config.get("use_sliding_window")) and config.get("sliding_window") is not None
    return None if rope is None else [FULL if use or not uses else SLIDING for use in rope[:depth]]


def _mixtures_of_llama4(config: Config, depth: int) -> Kinds | None:
    listed, step = config.get("moe_layers"), integer(config, "interleave_moe_layer_step", 1)
    if isinstance(listed, list):
        return [SPARSE if i in listed else DENSE for i in range(depth)]
    return None if step <= 0 else [DENSE if (i + 1) % step else SPARSE for i in range(depth)]


def _zamba(config: Config, depth: int) -> Kinds | None:
    period, start = integer(config, "attn_layer_period", 6), integer(config, "attn_layer_offset", 4)
    if period <= 0:
        return None
    rest = ["hybrid" if i % period == start else LINEAR for i in range(max(0, depth - 3))]
    return [LINEAR, LINEAR, "hybrid", *rest][:depth]


def _indexers(config: Config, depth: int) -> Kinds | None:
    """GLM-5: which layers select keys themselves, and which reuse another layer's selection."""
    if config.get("index_topk_pattern") is not None:
        return None
    step = max(integer(config, "index_topk_freq", 1), 1)
    start = integer(config, "index_skip_topk_offset", 2)
    return ["full" if max(i - start + 1, 0) % step == 0 else "shared" for i in range(depth)]


_INDEXERS = Rule(
    "indexer_types",
    _indexers,
    ("index_topk_freq", "index_skip_topk_offset"),
    sharing="selection of keys",
    own="full",
)


def _windows_before_mixtures(config: Config, depth: int) -> Kinds | None:
    """Cohere 2 MoE: one pattern of windows in the dense layers, another from there on."""
    dense = integer(config, "first_k_dense_replace", 0)
    first = integer(config, "prefix_dense_sliding_window_pattern", 1)
    rest = integer(config, "sliding_window_pattern", 4)
    if first <= 0 or rest <= 0:
        return None
    before = [SLIDING if (i + 1) % first else FULL for i in range(min(dense, depth))]
    return before + [SLIDING if (i + 1) % rest else FULL for i in range(depth - len(before))]


def _exaone(config: Config, depth: int) -> Kinds | None:
    if config.get("sliding_window", 4096) is None:
        return None
    return every_nth("sliding_window_pattern", 4).of(config, depth)


def _sparsity(config: Config, depth: int) -> Kinds:
    count = 10 if depth > 10 else 0
    return [0.95] * count + [0.0] * (depth - count)


def _hash_first(config: Config, depth: int) -> Kinds:
    count = integer(config, "num_hash_layers", 3)
    return ["hash_moe" if i < count else "moe" for i in range(depth)]


def _nllb(side: str) -> Rule:
    """NLLB-MoE: every n-th layer of each side is a mixture of experts."""
    key = f"{side}_sparse_step"

    def kinds(config: Config, depth: int) -> Kinds:
        step = integer(config, key, 4)
        return [SPARSE if step > 0 and not (i + 1) % step else DENSE for i in range(depth)]

    return Rule(MLPS, kinds, (key,), listed=False, side=side)


def _groups(config: Config, depth: int) -> Kinds | None:
    """Ling-linear: the last layer of each group has full attention, as have layers of an incomplete
    group."""
    size = integer(config, "layer_group_size", 1)
    whole = depth - depth % size if size > 0 else 0
    if size <= 0:
        return None
    return [LINEAR if (i + 1) % size and i < whole else FULL for i in range(depth)]


def _cross_layer(config: Config, depth: int) -> Kinds | None:
    """Hunyuan: groups of layers use the keys and values of the group's first."""
    share = integer(config, "cla_share_factor", 1)
    if not config.get("use_cla") or share <= 1:
        return None
    return ["another layer's keys and values" if i % share else OWN for i in range(depth)]


def _reuse(config: Config, depth: int) -> Kinds | None:
    """Hymba: layers of a listed group, other than its first, have no keys and values of their
    own."""
    groups = config.get("kv_reuse_group")
    if not isinstance(groups, list) or not all(isinstance(group, list) for group in groups):
        return None
    borrowers = {layer for group in groups for layer in group[1:]}
    return ["another layer's keys and values" if i in borrowers else OWN for i in range(depth)]


def _plamo(config: Config, depth: int) -> Kinds | None:
    """PLaMo 2: one layer of each group, its middle one, has attention."""
    step = integer(config, "mamba_step", 2)
    if config.get("mamba_enabled") is False or step <= 1:
        return None
    if depth <= step // 2:
        return [LINEAR] * (depth - 1) + [FULL]
    return [LINEAR if i % step != step // 2 else FULL for i in range(depth)]


def _switch(side: str) -> Rule:
    """Switch Transformers: mixtures of experts, n of them, spread evenly over each side."""
    key = f"num_sparse_{side}_layers"

    def kinds(config: Config, depth: int) -> Kinds | None:
        count = integer(config, key, 3)
        step = depth // count if count > 0 else depth
        if step <= 0:
            return None
        return [SPARSE if step == 1 or i % step == 1 else DENSE for i in range(depth)]

    return Rule(MLPS, kinds, (key,), (key,), listed=False, side=side)


def _inkling(config: Config, depth: int) -> Kinds:
    local = config.get("local_layer_ids")
    if isinstance(local, list):
        return ["hybrid_sliding" if i in local else "hybrid" for i in range(depth)]
    return ["hybrid_sliding" if (i + 1) % 6 else "hybrid" for i in range(depth)]


def _kimi(config: Config, depth: int) -> Kinds:
    """Kimi-Linear: full attention where ``linear_attn_config`` says so, counted from 1."""
    lists = config.get("linear_attn_config")
    if isinstance(lists, Mapping) and isinstance(full := lists.get("full_attn_layers"), list):
        return [FULL if i + 1 in full else LINEAR for i in range(depth)]
    return [FULL if i and i % 4 == 0 else LINEAR for i in range(depth)]


def _flint(i: int, depth: int) -> str:
    return FULL if i < 2 or i % 4 == 1 or i == depth - 1 else SLIDING


def _fourth_from_the_end(i: int, depth: int) -> str:
    return SLIDING if (depth - 1 - i) % 4 else FULL


def _windows_of_dots(i: int, depth: int) -> str:
    return "indexed_attention" if i < 2 or i % 4 == 1 else SLIDING


def _compressed(i: int, depth: int) -> str:
    return "heavily_compressed_attention" if i < 2 or i % 2 == 0 else "compressed_sparse_attention"


def _lfm3(i: int, depth: int) -> str:
    return FULL if i % 4 == 2 else SLIDING if i % 4 == 0 and i else "conv"


JAMBA = (
    Rule(
        "attention or Mamba",
        every_nth_from("attn_layer_period", "attn_layer_offset", FULL, LINEAR, (8, 4)),
        ("attn_layer_period", "attn_layer_offset"),
        ("attn_layer_period", "attn_layer_offset"),
        listed=False,
    ),
    Rule(
        MLPS,
        every_nth_from("expert_layer_period", "expert_layer_offset", SPARSE, DENSE, (2, 1)),
        ("expert_layer_period", "expert_layer_offset"),
        ("expert_layer_period", "expert_layer_offset"),
        listed=False,
    ),
)
RECURRENT_GEMMA = Rule(
    "temporal block",
    repeated_pattern("block_types", ("recurrent", "recurrent", "attention")),
    ("block_types",),
    listed=False,
    as_settings=lambda kinds: {"block_types": kinds},
)
CROSS_ATTENTION = every_nth(
    "cross_attention_frequency",
    2,
    "with cross-attention",
    "without",
    shift=0,
    name="cross-attention",
    listed=False,
)

_RULES: dict[str, tuple[Rule, ...]] = {
    "afmoe": (
        every_nth("global_attn_every_n_layers", 4),
        first_layers("num_dense_layers", 1, listed=False),
    ),
    "axk1": (sparse_from(1, listed=True),),
    "axk2": (sparse_from(1, listed=True), all_of_kind("indexed_attention")),
    "bailing_hybrid": (
        every_nth("layer_group_size", 6, FULL, LINEAR),
        first_layers("first_k_dense_replace", 2),
    ),
    "beam": (every_nth(None, 6, last=FULL), _THREE_DENSE),
    "blip_2_qformer instructblip_qformer instructblipvideo_qformer": (CROSS_ATTENTION,),
    "cohere2": (every_nth("sliding_window_pattern", 4),),
    "cohere2_moe": (
        Rule(
            LAYERS,
            _windows_before_mixtures,
            ("first_k_dense_replace", "sliding_window_pattern"),
        ),
        first_layers("first_k_dense_replace", 0),
    ),
    "cwm granite_swa granitemoe_swa": (_FOURTH_FIRST,),
    "deepseek_v2": (first_layers("first_k_dense_replace", 0, listed=False),),
    "deepseek_v3": (first_layers("first_k_dense_replace", 3, listed=False),),
    "glm4_moe glm4v_moe glm4v_moe_text": (first_layers("first_k_dense_replace", 1, listed=False),),
    "mistral4": (first_layers("first_k_dense_replace", 0, listed=False),),
    "dots1": (windows_from(62, None), first_layers("first_k_dense_replace", 0, listed=False)),
    "deepseek_v32": (first_layers("first_k_dense_replace", 3), all_of_kind("indexed_attention")),
    "deepseek_v4": (
        unless_listed("compress_ratios", by_layer_number(_compressed)),
        Rule(MLPS, _hash_first, _HASH, _HASH),
    ),
    "diffusion_gemma_text gemma4_unified_text gemma4_text gemma4 gemma4_unified": (
        every_nth(None, 6, last=FULL),
        _KV_SHARED,
    ),
    "dots3_note_text": (by_layer_number(_windows_of_dots), sparse_from(1, listed=True)),
    "embedding_gemma2_text": (every_nth("sliding_window_pattern", 6, last=FULL),),
    "ernie4_5_moe": (sparse_interval(),),
    "ernie4_5_vl_moe_text hy_v3 glm4_moe_lite": (_ONE_DENSE,),
    "exaone4": (Rule(LAYERS, _exaone, ("sliding_window_pattern",)),),
    "exaone_moe": (
        Rule(LAYERS, _exaone, ("sliding_window_pattern",)),
        first_layers("first_k_dense_replace", 1),
    ),
    "flint": (by_layer_number(_flint), sparse_steps(dense=(0, 1))),
    "gemma2 gpt_oss t5_gemma_module vaultgemma": (ALTERNATING,),
    "gemma3 gemma3_text t5gemma2_text t5gemma2_decoder": (every_nth("sliding_window_pattern", 6),),
    "gemma3n gemma3n_text": (
        every_nth(None, 5),
        Rule("activation_sparsity_pattern", _sparsity),
        sharing_last("num_kv_shared_layers", 15),
    ),
    "glm5_next_text": (
        every_nth(None, 4, "indexed_attention", LINEAR),
        _THREE_DENSE,
        _INDEXERS,
    ),
    "glm_moe_dsa": (
        first_layers("first_k_dense_replace", 3),
        all_of_kind("indexed_attention"),
        _INDEXERS,
    ),
    "hy_v4": (
        all_of_kind("indexed_attention"),
        _ONE_DENSE,
        replace(
            _INDEXERS,
            kinds=lambda config, depth: [
                "full" if i == 0 or (i - 1) % 4 == 0 else "shared" for i in range(depth)
            ],
            keys=(),
        ),
    ),
    "inkling_text": (
        Rule(LAYERS, _inkling, ("local_layer_ids",)),
        first_layers("dense_mlp_idx", 0),
    ),
    "inkling2_text": (every_nth(None, 6, "hybrid", "hybrid_sliding"),),
    "jamba": JAMBA,
    "kimi_linear": (
        Rule(LAYERS, _kimi, ("linear_attn_config",)),
        first_layers("first_k_dense_replace", 1),
    ),
    "kolibri1": (every_nth(None, 5),),
    "laguna": (_ONE_DENSE, all_of_kind(FULL)),
    "lfm2_moe": (first_layers("num_dense_layers", 2, listed=False),),
    "lfm3": (by_layer_number(_lfm3),),
    "lfm3_vl_vision": (by_layer_number(lambda i, depth: "conv" if i < 2 or i % 2 else FULL),),
    "llama4_text llama4": (
        _ROPE,
        Rule(LAYERS, _chunked, ("no_rope_layers", "no_rope_layer_interval")),
        Rule(
            MLPS,
            _mixtures_of_llama4,
            ("interleave_moe_layer_step", "moe_layers"),
            listed=False,
            as_settings=lambda kinds: {
                "moe_layers": [i for i, k in enumerate(kinds) if k == SPARSE]
            },
        ),
    ),
    "mimo_v2_flash": (
        by_layer_number(lambda i, depth: FULL if i == 0 or (i + 1) % 6 == 0 else SLIDING),
        _ONE_DENSE,
    ),
    "minimax": (every_nth(None, 2, LINEAR, FULL),),
    "mistral_large4_text": (
        _ROPE,
        first_layers("first_k_dense_replace", 1),
        all_of_kind("indexed_attention"),
        _INDEXERS,
    ),
    "modernbert modernbert-decoder": (every_nth("global_attn_every_n_layers", 3, shift=0),),
    "muse_glimmer_text muse_spark_text": (by_layer_number(_fourth_from_the_end),),
    "muse_glimmer_vision muse_spark_vision": (
        every_nth(None, 4, FULL, "window_attention", last=FULL),
    ),
    "neomme": (every_nth(None, 6, last=FULL),),
    "nllb-moe": (_nllb("encoder"), _nllb("decoder")),
    "olmo3": (every_nth(None, 4),),
    "olmo_hybrid": (every_nth(None, 4, FULL, LINEAR),),
    "pegasus_x": (
        every_nth(None, 2, "staggered", "aligned", name="blocks of local attention", listed=False),
    ),
    "qwen2 qwen3 qwen2_5_omni_text qwen2_5_omni_talker qwen3_omni_moe_talker_code_predictor": (
        windows_from(28),
    ),
    "deepseek_ocr2_encoder": (windows_from(28),),
    "qwen2_vl qwen2_vl_text qwen2_5_vl qwen2_5_vl_text": (windows_from(80),),
    "qwen2_moe": (alternating_windows_until(28), sparse_steps()),
    "qwen3_5_text qwen3_5_moe_text": (_LINEAR_BUT_FOURTH,),
    "qwen3_moe qwen3_vl_moe_text qwen3_omni_moe_text qwen3_omni_moe_talker_text": (sparse_steps(),),
    "qwen3_next": (_LINEAR_BUT_FOURTH, sparse_steps()),
    "qwen4_exp_text": (every_nth("full_attention_interval", 4, "indexed_attention", LINEAR),),
    "recurrent_gemma": (RECURRENT_GEMMA,),
    "smollm3": (
        _ROPE,
        Rule(LAYERS, _window_without_rope, ("no_rope_layers", "no_rope_layer_interval")),
    ),
    "step3p5": (all_of_kind(FULL), unless_listed("moe_layers_enum", _THREE_DENSE)),
    "switch_transformers": (_switch("encoder"), _switch("decoder")),
    "ultrabert": (unless_listed("attention_windows", every_nth(None, 3)),),
    "unlimited_ocr_text": (first_layers("first_k_dense_replace", 1),),
    "zamba": (Rule("layers_block_type", _zamba, ("attn_layer_period", "attn_layer_offset")),),
}

RULES_BY_FAMILY: dict[str, tuple[Rule, ...]] = {
    family: rules for families, rules in _RULES.items() for family in families.split()
}

_KEY_RULES: tuple[tuple[str, Rule, str], ...] = (
    ("sliding_window_pattern", every_nth("sliding_window_pattern", 6), "Gemma 3"),
    (
        "global_attn_every_n_layers",
        every_nth("global_attn_every_n_layers", 3, shift=0),
        "ModernBERT",
    ),
    (
        "dense_attention_every_n_layers",
        every_nth("dense_attention_every_n_layers", 2, FULL, "block-sparse attention"),
        "Phi-3-small",
    ),
    ("full_attention_interval", _LINEAR_BUT_FOURTH, "Qwen 3-Next"),
    ("layer_group_size", Rule(LAYERS, _groups, ("layer_group_size",)), "Ling-linear"),
    ("no_rope_layer_interval", _ROPE, "SmolLM 3"),
    ("first_k_dense_replace", sparse_from(0, listed=False), "DeepSeek"),
    ("num_dense_layers", first_layers("num_dense_layers", 0), "LFM 2 MoE"),
    ("moe_layer_interval", sparse_interval(), "Ernie 4.5"),
    ("decoder_sparse_step", sparse_steps(), "Qwen 2 MoE"),
    (
        "interleave_moe_layer_step",
        every_nth("interleave_moe_layer_step", 1, SPARSE, DENSE, name=MLPS),
        "Llama 4",
    ),
    ("attn_layer_period", JAMBA[0], "Jamba"),
    ("expert_layer_period", JAMBA[1], "Jamba"),
    (
        "mamba_step",
        Rule("attention or Mamba", _plamo, ("mamba_step",), ("mamba_step",)),
        "PLaMo 2",
    ),
    (
        "moe_layer_frequency",
        every_nth("moe_layer_frequency", 1, SPARSE, DENSE, name=MLPS),
        "Arctic",
    ),
    (
        "moe_every_n_layers",
        every_nth("moe_every_n_layers", 0, SPARSE, DENSE, shift=-1, name=MLPS),
        "nomic-embed-text-v2",
    ),
    ("block_types", RECURRENT_GEMMA, "RecurrentGemma"),
    ("cross_attention_frequency", CROSS_ATTENTION, "BLIP-2"),
    ("use_sliding_window", windows_from(28), "Qwen 2"),
    ("num_kv_shared_layers", _KV_SHARED, "Gemma 3n"),
    ("num_hash_layers", Rule(MLPS, _hash_first, _HASH, _HASH), "DeepSeek V4"),
    (
        "use_cla",
        Rule("cross-layer attention", _cross_layer, _CLA, listed=False, sharing=KEYS_AND_VALUES),
        "Hunyuan",
    ),
    (
        "kv_reuse_group",
        Rule("groups of keys and values", _reuse, ("kv_reuse_group",), listed=False),
        "Hymba",
    ),
)
RULES_BY_KEY: dict[str, Rule] = {
    key: replace(rule, listed=False, as_settings=None, from_family=from_family)
    for key, rule, from_family in _KEY_RULES
}
"""Rules by a distinctive key, for families not in the table; whether such families read a list
instead of the rule is unknown."""
