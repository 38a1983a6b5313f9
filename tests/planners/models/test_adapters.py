"""Adapters that PEFT makes and saves, against what PEFT makes of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mergeloom
from mergeloom.api import LoomWarning
from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.folder import LocalFolder
from mergeloom.planners.models.adapter import open_adapter
from mergeloom.planners.models.peft_settings import unknown_settings
from tests.families.tiny import fill, make_model
from tests.mergeloom.support import merge_without_torch
from tests.planners.models.adapting import (
    adapted_copy,
    check_against_peft,
    merged,
    passthrough,
    saved,
    saved_adapter,
)

peft = pytest.importorskip("peft", reason="adapters are judged by peft")
transformers = pytest.importorskip("transformers", reason="models are made by transformers")

ATTENTION = ["q_proj", "v_proj"]


def llama(tied: bool = False, bias: bool = False) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        attention_bias=bias,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    )


KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "plain": (llama, {"target_modules": ATTENTION}),
    "all linear, alpha": (llama, {"target_modules": "all-linear", "lora_alpha": 13}),
    "rslora": (llama, {"target_modules": ATTENTION, "use_rslora": True, "lora_alpha": 5}),
    "patterns": (
        llama,
        {
            "target_modules": [*ATTENTION, "up_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "up_proj": 3},
            "alpha_pattern": {r"layers\.0\..*v_proj": 7, "up_proj": 9},
        },
    ),
    "fan in fan out": (gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "modules to save": (llama, {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]}),
    "embedding": (llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "tokens": (llama, {"target_modules": ATTENTION, "trainable_token_indices": [7, 3, 40]}),
    "all biases": (lambda: llama(bias=True), {"target_modules": ATTENTION, "bias": "all"}),
    "biases of lora": (
        lambda: llama(bias=True),
        {"target_modules": ATTENTION, "bias": "lora_only", "lora_bias": True},
    ),
    "some layers": (llama, {"target_modules": ATTENTION, "layers_to_transform": [1]}),
    "dora": (llama, {"target_modules": [*ATTENTION, "down_proj"], "use_dora": True}),
    "dora, fan in fan out": (
        gpt2,
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True},
    ),
    "dora of an embedding": (llama, {"target_modules": ["embed_tokens"], "use_dora": True}),
    "head": (llama, {"target_modules": ["lm_head"]}),
    "negative alpha": (llama, {"target_modules": ATTENTION, "lora_alpha": -3}),
    "velora": (
        llama,
        {"target_modules": ATTENTION, "velora_config": peft.tuners.lora.config.VeloraConfig()},
    ),
    "monteclora": (
        llama,
        {
            "target_modules": ATTENTION,
            "monteclora_config": peft.tuners.lora.config.MontecloraConfig(),
        },
    ),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", KINDS)
def test_adapted_weights_agree_with_peft(kind: str, tmp_path: Path) -> None:
    adapted = saved(*KINDS[kind], tmp_path)
    assert check_against_peft(adapted, tmp_path)


@pytest.mark.parametrize("kind", ["dora, fan in fan out", "tokens", "biases of lora"])
def test_an_adapter_is_merged_without_torch(kind: str, tmp_path: Path) -> None:
    saved(*KINDS[kind], tmp_path)
    config = tmp_path / "config.yml"
    config.write_text(json.dumps(adapted_copy(tmp_path)))
    merge_without_torch(config, tmp_path / "out")


TIED = {
    "embedding": {"target_modules": ["embed_tokens"]},
    "head": {"target_modules": ["lm_head"]},
    "head saved": {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]},
    "tokens": {"target_modules": ATTENTION, "trainable_token_indices": [7, 3]},
    "neither": {"target_modules": ATTENTION},
}


@pytest.mark.parametrize("kind", TIED)
def test_a_tied_model_computes_what_it_computes_with_the_adapter(kind: str, tmp_path: Path) -> None:
    adapted = saved(lambda: llama(tied=True), TIED[kind], tmp_path).eval()
    tokens = torch.randint(48, (1, 9))
    with torch.no_grad():
        expected = adapted(tokens).logits
    mergeloom.merge(adapted_copy(tmp_path), tmp_path / "out")
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-5)


def test_an_adapter_alone_is_merged_into_the_model_it_names(tmp_path: Path) -> None:
    saved(*KINDS["plain"], tmp_path)
    with pytest.warns(LoomWarning, match="is an adapter: it is merged into"):
        alone = merged(passthrough(f"{tmp_path}/adapter"), tmp_path / "alone")
    named = merged(adapted_copy(tmp_path), tmp_path / "named")
    assert all(torch.equal(alone[name], named[name]) for name in named)


def test_many_adapters_over_one_model_read_it_once(tmp_path: Path) -> None:
    models = []
    for number in range(9):
        torch.manual_seed(number)
        saved(*KINDS["plain"], tmp_path)
        (tmp_path / "adapter").rename(tmp_path / f"a{number}")
        models.append(f"{tmp_path}/base+{tmp_path}/a{number}")
    config = {
        "merge_method": "ties",
        "base_model": f"{tmp_path}/base",
        "models": [{"model": m, "parameters": {"weight": 1, "density": 0.5}} for m in models],
        "dtype": "float32",
    }
    planned = mergeloom.plan(config, ram="2GiB")
    base = (tmp_path / "base" / "model.safetensors").stat().st_size
    ranks = sum((tmp_path / f"a{n}" / "adapter_model.safetensors").stat().st_size for n in range(9))
    assert planned.schedule.read_bytes <= base + ranks
    free = merged(config, tmp_path / "free", ram="2GiB", threads=2)
    wanted = (tmp_path / "free" / "model.safetensors").read_bytes()
    smallest = mergeloom.plan(config, ram="2GiB").schedule.minimum_bytes
    mergeloom.merge(config, tmp_path / "tight", ram=smallest, threads=1)
    assert (tmp_path / "tight" / "model.safetensors").read_bytes() == wanted
    untouched = load_file(tmp_path / "base" / "model.safetensors")
    changed = {name for name in free if not torch.equal(free[name], untouched[name])}
    assert changed == {n for n in free if any(f"{part}.weight" in n for part in ATTENTION)}


def test_an_adapter_with_another_name_prefix_is_applied(tmp_path: Path) -> None:
    saved(*KINDS["plain"], tmp_path)
    named = merged(adapted_copy(tmp_path), tmp_path / "named")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file(
        {n.replace("model.model.", "model.language_model."): t for n, t in tensors.items()}, file
    )
    moved = merged(adapted_copy(tmp_path), tmp_path / "moved")
    assert all(torch.equal(moved[name], named[name]) for name in named)


def test_modules_that_the_model_lacks_are_listed(tmp_path: Path) -> None:
    saved(*KINDS["plain"], tmp_path)
    gpt2().save_pretrained(tmp_path / "other")
    with pytest.raises(
        CheckpointError,
        match=r"does not have: .*layers\.0\.self_attn\.q_proj.*layers\.1\.self_attn\.v_proj",
    ):
        mergeloom.plan(passthrough(f"{tmp_path}/other+{tmp_path}/adapter"))


def test_an_adapter_of_another_size_is_refused(tmp_path: Path) -> None:
    saved(*KINDS["plain"], tmp_path)
    config = transformers.LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "large")
    with pytest.raises(CheckpointError, match=r"16x16, the model's .* is 32x32"):
        mergeloom.plan(passthrough(f"{tmp_path}/large+{tmp_path}/adapter"))


@pytest.mark.parametrize(
    "config",
    [
        peft.LNTuningConfig(target_modules=["input_layernorm"]),
        peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=[7, 3]),
    ],
    ids=["norms", "tokens"],
)
def test_trained_norms_and_tokens_agree_with_peft(config: Any, tmp_path: Path) -> None:
    model = llama()
    model.save_pretrained(tmp_path / "base")
    assert check_against_peft(saved_adapter(model, config, tmp_path), tmp_path) in (1, 2)


MERGED = {"LORA", "LN_TUNING", "TRAINABLE_TOKENS"}
IN_NO_WEIGHTS = {"XLORA", "POLY", "ADAPTION_PROMPT", "SHADOW", "LILY", "CARTRIDGE"}


@pytest.mark.parametrize("kind", sorted({each.value for each in peft.PeftType} - MERGED))
def test_other_kinds_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    """All that PEFT has; where PEFT cannot merge them either, it is not said to."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    with pytest.raises(CheckpointError, match=f"of the kind {kind}, ") as raised:
        open_adapter("it", LocalFolder(tmp_path))
    prompts = issubclass(peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind], peft.PromptLearningConfig)
    for_peft = "merge_and_unload" in str(raised.value)
    assert for_peft == (not prompts and kind not in IN_NO_WEIGHTS)


def test_every_setting_of_peft_is_known() -> None:
    for config in (peft.LoraConfig, peft.LNTuningConfig, peft.TrainableTokensConfig):
        on = {field.name: "on" for field in dataclasses.fields(config)}
        assert not unknown_settings(on)


def test_settings_that_are_not_known_are_warned_of(tmp_path: Path) -> None:
    saved(*KINDS["plain"], tmp_path)
    path = tmp_path / "adapter" / "adapter_config.json"
    more = {"use_mora": True, "mora_type": None, "lora_nums": []}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    found = mergeloom.plan(adapted_copy(tmp_path)).plan.warnings
    assert [line for line in found if "'use_mora', which is not known" in line]
    assert not [line for line in found if "mora_type" in line or "lora_nums" in line]


OTHER_PROGRAMS: dict[str, tuple[dict[str, Any] | None, str, str, str]] = {
    "diffusers": (
        *(None, "pytorch_lora_weights.safetensors", "unet.up.lora_A.weight"),
        "a LoRA of a diffusers pipeline .*: merge it with diffusers",
    ),
    "kohya": (
        *({"peft_type": "LORA"}, "adapter_model.safetensors"),
        *("lora_unet_up_0.lora_down.weight", "as kohya's scripts name a LoRA: convert it"),
    ),
    "another LoRA": (
        *({"peft_type": "LORA"}, "adapter_model.safetensors"),
        *("base_model.model.a.lora_route.weight", "of a kind of LoRA that is not known"),
    ),
    "none": ({"r": 4}, "adapter_model.safetensors", "a.lora_A.weight", "has no 'peft_type'"),
}


@pytest.mark.parametrize("program", OTHER_PROGRAMS)
def test_adapters_of_other_programs_are_refused_by_name(program: str, tmp_path: Path) -> None:
    config, file, tensor, words = OTHER_PROGRAMS[program]
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({tensor: torch.zeros(4, 4)}, tmp_path / file)
    with pytest.raises(CheckpointError, match=words):
        open_adapter("it", LocalFolder(tmp_path))


def test_an_adapter_given_as_a_file_is_refused(tmp_path: Path) -> None:
    saved(*KINDS["plain"], tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    with pytest.raises(CheckpointError, match=r"is a file, .*: give the directory that it is in"):
        mergeloom.plan(passthrough(f"{tmp_path}/base+{file}"))
    (file.parent / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"is a file, .*: convert it to peft's format first"):
        mergeloom.plan(passthrough(f"{tmp_path}/base+{file}"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "also changes the base model"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"use_qalora": True}, "QALoRA adapter, .* with peft"),
        ({"use_bdlora": {"nblocks": 2}}, "block-diagonal .*: leave it out"),
        ({"kasa_config": {"beta": 1}}, "smallest singular values .* with peft"),
        ({"alora_invocation_tokens": [1]}, "only after certain tokens .*: leave it out"),
        ({"arrow_config": {"top_k": 2}}, "between adapters at run time .*: leave it out"),
        ({"enable_lora": [True, False]}, "parts of fused layers"),
        ({"megatron_config": {"a": 1}}, "modules of Megatron"),
        ({"r": 3}, "in the adapter's configuration is 3"),
        ({"lora_alpha": "x"}, "'lora_alpha' is 'x', not a number"),
        ({"alpha_pattern": {"((a*)*)*q": 1}}, "too complex"),
    ],
)
def test_unsupported_settings_of_an_adapter_are_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    saved(*KINDS["plain"], tmp_path)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=words):
        open_adapter("it", LocalFolder(tmp_path / "adapter"))


def test_a_model_named_as_adapter_and_an_adapter_without_weights_are_refused(
    tmp_path: Path,
) -> None:
    saved(*KINDS["plain"], tmp_path)
    with pytest.raises(CheckpointError, match="it is a model"):
        mergeloom.plan(passthrough(f"{tmp_path}/base+{tmp_path}/base"))
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="copy or download it again"):
        mergeloom.plan(adapted_copy(tmp_path))


def test_every_tensor_of_an_adapter_is_accounted_for(tmp_path: Path) -> None:
    saved(*KINDS["modules to save"], tmp_path)
    model = f"{tmp_path}/base+{tmp_path}/adapter"
    shutil.copytree(tmp_path / "base", tmp_path / "two")
    config = {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": model, "layer_range": [0, 1]}]}],
        "dtype": "float32",
    }
    planned = mergeloom.plan(config)
    left = {item.model: item for item in planned.plan.unused}
    names = {name for item in planned.plan.unused for name in item.names}
    assert "lm_head.weight" in names
    assert sum("layers.1" in name and "lora_" in name for name in names) == 4
    assert len(left) == 2


def test_the_tokenizer_of_an_adapter_is_used(tmp_path: Path) -> None:
    saved(llama, {"target_modules": ATTENTION}, tmp_path)
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    (tmp_path / "base" / "generation_config.json").write_text("{}")
    merged(adapted_copy(tmp_path), tmp_path / "without")
    assert (tmp_path / "without" / "tokenizer.json").read_text() == "{}"
    own = {"tokenizer.json": '{"more": 1}', "tokenizer_config.json": "[]"}
    for name, text in own.items():
        (tmp_path / "adapter" / name).write_text(text)
    merged(adapted_copy(tmp_path), tmp_path / "out")
    for name, text in own.items():
        assert (tmp_path / "out" / name).read_text() == text
    assert (tmp_path / "out" / "generation_config.json").read_text() == "{}"
    assert "`adapter`" in (tmp_path / "out" / "README.md").read_text()


WORDS = {"target_modules": ["word_embeddings"]}
TIED_HEADS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "DistilBERT": ("DistilBertForMaskedLM", WORDS, {}),
    "ELECTRA": ("ElectraForMaskedLM", WORDS, {"embedding_size": 16}),
    "ModernBERT": ("ModernBertForMaskedLM", {"target_modules": ["tok_embeddings"]}, {}),
    "GPT-NeoX": (
        "GPTNeoXForCausalLM",
        {"target_modules": ["embed_in"]},
        {"tie_word_embeddings": True},
    ),
    "BERT": ("BertForMaskedLM", WORDS, {}),
    "RoBERTa": ("RobertaForMaskedLM", WORDS, {}),
    "ALBERT": ("AlbertForMaskedLM", WORDS, {}),
    "BERT, head": ("BertForMaskedLM", {"target_modules": ["decoder"]}, {}),
    "RoBERTa, head saved": (
        "RobertaForMaskedLM",
        {"target_modules": ["query"], "modules_to_save": ["lm_head"]},
        {},
    ),
    "BERT, embedding saved": (
        "BertForMaskedLM",
        {"target_modules": ["query"], "modules_to_save": ["word_embeddings"]},
        {},
    ),
}
"""Class, settings of the adapter, and sizes of the model."""


@pytest.mark.parametrize("kind", TIED_HEADS)
def test_an_adapter_of_either_leaves_the_tied_embedding_or_head_as_it_was(
    kind: str, tmp_path: Path
) -> None:
    """The head is then stored under the name that the model's class has for it, and its bias."""
    name, settings, sizes = TIED_HEADS[kind]

    def make() -> Any:
        model = make_model(name, sizes)
        fill(model, 0)
        model.tie_weights()
        return model

    adapted = saved(make, {**settings, "task_type": None}, tmp_path).eval()
    merged(adapted_copy(tmp_path), tmp_path / "out")
    loaded, about = getattr(transformers, name).from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not about["unexpected_keys"]
    tokens = torch.tensor([[1, 9, 5, 3]])
    with torch.no_grad():
        found, expected = (each(input_ids=tokens).logits for each in (loaded.eval(), adapted))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
