"""Adapters extracted from models built by transformers, loaded by PEFT."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import mergeloom
from mergeloom.cli import app
from mergeloom.engine.base.errors import LoomError

SIZES = {"vocab_size": 96, "max_position_embeddings": 64}
WIDE = {
    **SIZES,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**WIDE),
    "tied": LlamaConfig(**WIDE, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**WIDE),  # biases of some projections
    "gpt2": GPT2Config(vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=4),
}
SMALL = {"intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
TOKENS = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(1))


def saved(name: str, where: Path, seed: int, changed: float = 0.0) -> PreTrainedModel:
    """A model of random weights; ``changed`` is the size of a random change of all of them."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(CONFIGS[name])
    torch.manual_seed(seed)
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(number))
            weight.add_(changed * torch.randn(weight.shape))
    model.save_pretrained(where)
    return model.eval()


def extract(tmp_path: Path, dtype: str | None = None, **settings: Any) -> Path:
    out = tmp_path / "adapter"
    document: dict[str, Any] = {
        "extract": {"model": str(tmp_path / "tuned"), "base_model": str(tmp_path / "base")}
    }
    document["extract"] |= settings
    if dtype is not None:
        document["dtype"] = dtype
    mergeloom.merge(document, out)
    return out


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(TOKENS).logits
    return found


def with_adapter(tmp_path: Path, adapter: Path) -> Any:
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    return PeftModel.from_pretrained(base, str(adapter)).eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_of_full_rank_makes_the_base_the_fine_tuned_model(
    name: str, tmp_path: Path
) -> None:
    saved(name, tmp_path / "base", 0)
    want = logits(saved(name, tmp_path / "tuned", 1, changed=0.05))
    adapter = extract(tmp_path, rank=200)
    model = with_adapter(tmp_path, adapter)
    torch.testing.assert_close(logits(model), want, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(model.merge_and_unload()), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_mergeloom_reads_what_it_extracts(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path / "base", 0)
    want = logits(saved(name, tmp_path / "tuned", 1, changed=0.05))
    adapter = extract(tmp_path, rank=200)
    both = {"model": f"{tmp_path / 'base'}+{adapter}"}
    document = {"merge_method": "passthrough", "models": [both], "dtype": "float32"}
    mergeloom.merge(document, tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(found), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_factors_are_the_closest_of_their_rank(name: str, tmp_path: Path) -> None:
    base, tuned = saved(name, tmp_path / "base", 0), saved(name, tmp_path / "tuned", 1, 0.05)
    tensors = load_file(extract(tmp_path, rank=5) / "adapter_model.safetensors")
    before, after = base.state_dict(), tuned.state_dict()
    seen = 0
    for key, down in tensors.items():
        if not key.endswith(".lora_A.weight"):
            continue
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        change = (after[f"{module}.weight"] - before[f"{module}.weight"]).double()
        if name == "gpt2":
            change = change.T
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        best = (left[:, :5] * values[:5]) @ right[:5]
        found = tensors[key.replace("lora_A", "lora_B")].double() @ down.double()
        torch.testing.assert_close(found, best, rtol=0, atol=1e-6)
        seen += 1
    assert seen == (8 if name == "gpt2" else 14)


def test_a_low_rank_change_is_found_whole_and_written_in_the_wanted_dtype(tmp_path: Path) -> None:
    base = saved("llama", tmp_path / "base", 0)
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        for key, weight in tuned.named_parameters():
            if key.endswith("_proj.weight"):
                weight.add_(0.1 * torch.randn(len(weight), 2) @ torch.randn(2, weight.shape[1]))
    tuned.save_pretrained(tmp_path / "tuned")
    adapter = extract(tmp_path, dtype="bfloat16", rank=2, embeddings="skip", exclude="norm")
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert len(tensors) == 28
    assert {each.dtype for each in tensors.values()} == {torch.bfloat16}
    far = (logits(base) - logits(tuned)).norm()
    near = (logits(with_adapter(tmp_path, adapter)) - logits(tuned)).norm()
    assert near < 0.02 * far


def test_settings_of_the_adapter_are_short_and_true(tmp_path: Path) -> None:
    saved("qwen2", tmp_path / "base", 0)
    saved("qwen2", tmp_path / "tuned", 1, 0.05)
    config = json.loads((extract(tmp_path, rank=20) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (20, 20, "CAUSAL_LM")
    assert config["rank_pattern"] == {
        f"model.layers.{layer}.self_attn.{part}_proj": 16 for layer in (0, 1) for part in "kv"
    }
    assert config["target_modules"] == [
        *("down_proj", "gate_proj", "up_proj", "k_proj", "o_proj", "q_proj", "v_proj"),
    ]
    assert sorted(config["modules_to_save"]) == [
        *("embed_tokens", "input_layernorm", "lm_head", "norm", "post_attention_layernorm"),
    ]
    assert config["bias"] == "all"


def test_modules_are_selected_by_name(tmp_path: Path) -> None:
    saved("llama", tmp_path / "base", 0)
    saved("llama", tmp_path / "tuned", 1, 0.05)
    adapter = extract(
        tmp_path,
        rank=4,
        embeddings="skip",
        include=["self_attn"],
        exclude="k_proj",
        save="1.*v_proj",
    )
    names = {
        key.removeprefix("base_model.model.model.")
        for key in load_file(adapter / "adapter_model.safetensors")
    }
    factors = {
        f"layers.{layer}.self_attn.{part}_proj.lora_{letter}.weight"
        for layer in (0, 1)
        for part in ("q", "v", "o")
        for letter in "AB"
        if (layer, part) != (1, "v")
    }
    assert names == factors | {"layers.1.self_attn.v_proj.weight"}
    assert with_adapter(tmp_path, adapter) is not None


def test_a_merge_that_is_never_written_has_an_adapter(tmp_path: Path) -> None:
    base, tuned = saved("llama", tmp_path / "base", 0), saved("llama", tmp_path / "tuned", 1, 0.05)
    (tmp_path / "merge.yml").write_text(
        "merge_method: linear\nname: half\ndtype: float32\nparameters: {weight: 1}\n"
        "models: [{model: base}, {model: tuned}]\n---\n"
        "extract: {model: half, base_model: base, rank: 200, embeddings: skip}\n"
    )
    planned = mergeloom.plan(tmp_path / "merge.yml")
    assert planned.report.io.repeated_bytes == 0
    mergeloom.merge(planned, tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    stem = "model.layers.1.mlp.up_proj"
    down, up = (tensors[f"base_model.model.{stem}.lora_{each}.weight"] for each in "AB")
    change = tuned.state_dict()[f"{stem}.weight"] - base.state_dict()[f"{stem}.weight"]
    torch.testing.assert_close(up @ down, change / 2, rtol=0, atol=1e-6)


def test_a_model_with_more_tokens_gets_its_own_table(tmp_path: Path) -> None:
    saved("llama", tmp_path / "base", 0)
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tuned.resize_token_embeddings(100, mean_resizing=False)
    tuned.save_pretrained(tmp_path / "tuned")
    with pytest.warns(UserWarning, match=r"resize_token_embeddings\(100\)"):
        adapter = extract(tmp_path, rank=2)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(100, mean_resizing=False)
    found = PeftModel.from_pretrained(base, str(adapter)).eval()
    torch.testing.assert_close(logits(found), logits(tuned.eval()), rtol=0, atol=1e-5)


def test_every_budget_gives_the_same_adapter(tmp_path: Path) -> None:
    saved("llama", tmp_path / "base", 0)
    saved("llama", tmp_path / "tuned", 1, 0.05)
    document = {"extract": {"model": str(tmp_path / "tuned"), "base_model": str(tmp_path / "base")}}
    smallest = mergeloom.plan(document).report.memory.minimum_bytes
    mergeloom.merge(document, tmp_path / "one", ram=smallest + (64 << 20), threads=1)
    mergeloom.merge(document, tmp_path / "two", threads=4)
    files = [
        (tmp_path / each / "adapter_model.safetensors").read_bytes() for each in ("one", "two")
    ]
    assert files[0] == files[1]


def pair_of(model: PreTrainedModel, tmp_path: Path) -> dict[str, str]:
    """A model saved twice, as a model and its base."""
    for name in ("base", "tuned"):
        model.save_pretrained(tmp_path / name)
    return {"model": str(tmp_path / "tuned"), "base_model": str(tmp_path / "base")}


@pytest.mark.parametrize(
    ("model", "message", "way_out"),
    [
        (
            lambda: MixtralForCausalLM(MixtralConfig(**WIDE, num_local_experts=2)),
            "keep all experts of a layer in one tensor",
            {"exclude": "block_sparse_moe"},
        ),
        (
            lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**{**SIZES, "hidden_size": 32, **SMALL})),
            "another name for 'embed_out'",
            {"exclude": "embed_out"},
        ),
        (
            lambda: T5ForConditionalGeneration(
                T5Config(vocab_size=96, d_model=32, d_ff=48, d_kv=8)
            ),
            "three modules in its class",
            {"embeddings": "skip"},
        ),
    ],
    ids=["mixtral", "gpt_neox", "t5"],
)
def test_what_peft_would_lose_is_refused_with_a_way_out(
    model: Callable[[], PreTrainedModel], message: str, way_out: dict[str, str], tmp_path: Path
) -> None:
    pair = pair_of(model(), tmp_path)
    assert message in refusal(tmp_path, {"extract": pair})
    assert mergeloom.plan({"extract": {**pair, **way_out}}).report.memory.minimum_bytes


def test_the_remedy_leaves_out_everything_that_peft_would_lose(tmp_path: Path) -> None:
    sizes = {**WIDE, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    config = Qwen3MoeConfig(**sizes, head_dim=8, mlp_only_layers=[0])
    pair = pair_of(Qwen3MoeForCausalLM(config), tmp_path)
    text = refusal(tmp_path, {"extract": pair})
    remedy = re.search(r'"(exclude: .+)" leaves out', text)
    assert remedy is not None
    assert mergeloom.plan({"extract": {**pair, **yaml.safe_load(remedy[1])}})


def test_parameters_beside_modules_with_factors_are_left_out_by_name(tmp_path: Path) -> None:
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 8}
    pair = pair_of(MambaForCausalLM(MambaConfig(**sizes)), tmp_path)
    with pytest.warns(UserWarning, match=r"A_log' is left out: its module contains modules"):
        mergeloom.plan({"extract": pair})


def refusal(tmp_path: Path, document: dict[str, Any]) -> str:
    with pytest.raises(LoomError) as caught:
        mergeloom.plan(document)
    return str(caught.value)


def test_models_that_are_no_pair_are_refused(tmp_path: Path) -> None:
    saved("llama", tmp_path / "base", 0)
    saved("qwen2", tmp_path / "other", 0)
    saved("tied", tmp_path / "tied", 0)
    larger = LlamaConfig(**{**WIDE, "intermediate_size": 64})
    AutoModelForCausalLM.from_config(larger).save_pretrained(tmp_path / "larger")

    def found(model: str, base: str) -> str:
        names = {"model": str(tmp_path / model), "base_model": str(tmp_path / base)}
        return refusal(tmp_path, {"extract": names})

    assert "cannot add or remove them: is this the model that it was trained from?" in found(
        "other", "base"
    )
    assert "its embedding is its head" in found("tied", "base")
    text = found("base", "larger")
    assert "down_proj.weight' is 32x48 in '" in text
    assert "and 32x64 in '" in text
    assert "is its own base model" in found("base", "base")


def test_mistakes_in_the_settings_are_named(tmp_path: Path) -> None:
    saved("llama", tmp_path / "base", 0)
    saved("llama", tmp_path / "tuned", 1)
    pair = {"model": str(tmp_path / "tuned"), "base_model": str(tmp_path / "base")}
    assert "'rank'" in refusal(tmp_path, {"extract": {**pair, "rank": 0}})
    assert "known: lora, save, skip" in refusal(tmp_path, {"extract": {**pair, "embeddings": "x"}})
    assert "is not a regular expression" in refusal(tmp_path, {"extract": {**pair, "include": "("}})
    assert "write 'base_model: MODEL'" in refusal(tmp_path, {"extract": {"model": pair["model"]}})
    assert "is selected" in refusal(tmp_path, {"extract": {**pair, "include": "nothing"}})
    assert AutoConfig.from_pretrained(tmp_path / "base").model_type == "llama"


def test_an_extraction_from_python_and_from_the_command_line(tmp_path: Path) -> None:
    saved("llama", tmp_path / "base", 0)
    saved("llama", tmp_path / "tuned", 1, 0.05)
    models = tmp_path / "tuned", tmp_path / "base"
    mergeloom.extract(*models, tmp_path / "one", rank=3, exclude="mlp", embeddings="skip")
    assert len(load_file(tmp_path / "one" / "adapter_model.safetensors")) == 16 + 5
    words = ["extract", *map(str, models), str(tmp_path / "two"), "--rank", "3", "-e", "mlp"]
    assert not app([*words, "--embeddings", "skip", "-q"], standalone_mode=False)
    one, two = (tmp_path / each / "adapter_model.safetensors" for each in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(LoomError) as caught:
        mergeloom.plan_extract(*models, rank=0)
    assert str(caught.value).startswith("rank: ")
