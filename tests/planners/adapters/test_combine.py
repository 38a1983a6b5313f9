"""Adapters combined into one, against what PEFT's ``add_weighted_adapter`` makes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mergeloom
from mergeloom.api import LoomWarning
from mergeloom.engine.base.errors import CheckpointError, ConfigError
from mergeloom.methods.adapters.combinations import COMBINATIONS

peft = pytest.importorskip("peft", reason="adapters are judged by peft")
transformers = pytest.importorskip("transformers", reason="models are made by transformers")

WEIGHTS = {"one": 0.8, "two": -0.5, "three": 0.3}
EXACT = [kind for kind in COMBINATIONS.values() if not kind.draws]
Deltas = dict[str, torch.Tensor]


def llama() -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=48,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    )


LINEAR = {"target_modules": ["q_proj", "down_proj"], "lora_alpha": 8}
SAME_RANK: dict[str, dict[str, Any]] = {
    "one": LINEAR,
    "two": {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 3},
    "three": {**LINEAR, "use_rslora": True},
}
RANKS: dict[str, dict[str, Any]] = {
    "one": {**LINEAR, "r": 2},
    "two": {"target_modules": ["q_proj", "v_proj"], "r": 5},
    "three": {
        "target_modules": ["q_proj", "down_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 6},
        "alpha_pattern": {"down_proj": 7},
    },
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def made(folder: Path, adapters: dict[str, dict[str, Any]], make: Any = llama) -> None:
    """Save a base and adapters of it, with values other than those that they begin with."""
    make().save_pretrained(folder / "base")
    for name, settings in adapters.items():
        base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
        config = peft.LoraConfig(**{"r": 4, "task_type": "CAUSAL_LM", **settings})
        config.base_model_name_or_path = str(folder / "base")
        adapted = peft.get_peft_model(base, config)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
        adapted.save_pretrained(folder / name)


def document(folder: Path, method: str, names: Any = WEIGHTS, **parameters: Any) -> dict[str, Any]:
    return {
        "merge_method": method,
        "adapters": [
            {"adapter": str(folder / name), "parameters": {"weight": WEIGHTS[name]}}
            for name in names
        ],
        "parameters": parameters,
    }


def deltas(model: Any, adapter: str) -> Deltas:
    """What an adapter adds to each weight."""
    return {
        name: module.get_delta_weight(adapter).detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
        and adapter in {**module.lora_A, **module.lora_embedding_A}
    }


def loaded(folder: Path, adapters: Any) -> Any:
    """The base with adapters, each under its name."""
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    first, *others = adapters
    model = peft.PeftModel.from_pretrained(base, folder / first, adapter_name=first)
    for name in others:
        model.load_adapter(folder / name, adapter_name=name)
    return model


def check(folder: Path, method: str, names: Any = WEIGHTS, **settings: Any) -> None:
    """Combine adapters here and there, and compare what both add to each weight."""
    model = loaded(folder, names)
    weights = [WEIGHTS[name] for name in names]
    theirs = {"density": 0.4, **settings} if COMBINATIONS[method].drops_smallest else settings
    model.add_weighted_adapter(list(names), weights, "both", combination_type=method, **theirs)
    expected = deltas(model, "both")
    ours = {key: value for key, value in theirs.items() if value is not None}
    mergeloom.merge(document(folder, method, names, **ours), folder / "out")
    found = deltas(loaded(folder, ["out"]), "out")
    for name, delta in expected.items():
        own = found.pop(name) if bool(delta.any()) else torch.zeros_like(delta)
        close = 1e-5 * float(delta.abs().max())  # the rounding of PEFT's singular values
        torch.testing.assert_close(own, delta, rtol=0, atol=close, msg=f"{method} {name}")
    assert not found


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_each_method_agrees_with_peft(kind: Any, tmp_path: Path) -> None:
    made(tmp_path, SAME_RANK)
    settings = {"majority_sign_method": "frequency"} if kind.elect else {}
    check(tmp_path, kind.name, **settings)


@pytest.mark.parametrize("name", ["cat", "svd", "ties_svd", "magnitude_prune_svd"])
def test_adapters_of_different_ranks_agree_with_peft(name: str, tmp_path: Path) -> None:
    made(tmp_path, RANKS)
    check(tmp_path, name, svd_rank=None if name == "cat" else 7)


@pytest.mark.parametrize("name", ["cat", "svd"])
def test_adapters_of_different_layers_agree_with_peft(name: str, tmp_path: Path) -> None:
    """PEFT takes the first adapter's layers for all, and raises an error."""
    some = {"target_modules": ["q_proj", "v_proj"], "r": 2}
    made(tmp_path, {"one": LINEAR, "two": {**some, "layers_to_transform": [1]}})
    settings = {"svd_rank": 6} if name == "svd" else {}
    mergeloom.merge(document(tmp_path, name, ["one", "two"], **settings), tmp_path / "out")
    model = loaded(tmp_path, ["one", "two", "out"])
    first, second, found = (deltas(model, each) for each in ("one", "two", "out"))
    assert found.keys() == first.keys() | second.keys()
    for module, delta in found.items():
        zero = torch.zeros_like(delta)
        expected = 0.8 * first.get(module, zero) - 0.5 * second.get(module, zero)
        torch.testing.assert_close(delta, expected, rtol=0, atol=1e-5, msg=module)


@pytest.mark.parametrize("name", ["linear", "cat", "svd", "ties_svd"])
def test_embeddings_and_transposed_layers_agree_with_peft(name: str, tmp_path: Path) -> None:
    targets = {"target_modules": ["wte", "c_attn", "c_fc"], "fan_in_fan_out": True}
    made(tmp_path, {"one": targets, "two": targets}, gpt2)
    check(tmp_path, name, ["one", "two"])


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"])
def test_random_methods_of_density_1_agree_with_peft(name: str, tmp_path: Path) -> None:
    made(tmp_path, SAME_RANK)
    check(tmp_path, name, density=1.0)


def test_random_drops_follow_the_seed_and_agree_between_factors(tmp_path: Path) -> None:
    wide = {"target_modules": ["q_proj"], "r": 16}
    made(tmp_path, {"one": wide})
    given = document(tmp_path, "dare_linear_svd", ["one"], density=0.5, svd_rank=16)
    results = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        mergeloom.merge(given, tmp_path / name, seed=seed)
        results.append(deltas(loaded(tmp_path, [name]), name))
    original = deltas(loaded(tmp_path, ["one"]), "one")
    for name, delta in original.items():
        first, again, other = (each[name] for each in results)
        assert torch.equal(first, again)
        assert not torch.allclose(first, other)
        kept = first.abs() > 1e-5
        torch.testing.assert_close(first[kept], 2 * 0.8 * delta[kept], rtol=1e-4, atol=1e-5)
        assert 0.3 < float(kept.float().mean()) < 0.7


def test_the_smallest_budget_gives_the_same_bytes(tmp_path: Path) -> None:
    made(tmp_path, RANKS)
    given = document(tmp_path, "ties_svd", density=0.3)
    mergeloom.merge(given, tmp_path / "free")
    planned = mergeloom.plan(given)
    assert planned.schedule.repeated_bytes == 0
    least = planned.schedule.minimum_bytes
    mergeloom.merge(given, tmp_path / "tight", ram=least, threads=1)
    names = ("adapter_model.safetensors", "adapter_config.json")
    for name in names:
        assert (tmp_path / "free" / name).read_bytes() == (tmp_path / "tight" / name).read_bytes()


def test_the_configuration_is_one_that_peft_would_write(tmp_path: Path) -> None:
    made(tmp_path, SAME_RANK)
    mergeloom.merge(document(tmp_path, "linear"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 4
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert config["inference_mode"] is True
    assert config["use_rslora"] is False
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["peft_type"] == "LORA"
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_file()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "mergeloom_config.yml",
    ]


@pytest.mark.parametrize("name", ["linear", "dare_linear", "svd"])
def test_a_check_skips_methods_that_only_share_a_name_with_merges_of_models(
    name: str, tmp_path: Path
) -> None:
    """What computes outputs again knows formulas of methods that are called alike."""
    made(tmp_path, SAME_RANK)
    result = mergeloom.merge(document(tmp_path, name), tmp_path / "out", check=4)
    assert result.checked is not None
    assert result.checked.tensors == 0


def test_a_result_is_merged_into_its_model(tmp_path: Path) -> None:
    made(tmp_path, SAME_RANK)
    mergeloom.merge(document(tmp_path, "cat"), tmp_path / "out")
    whole = {
        "merge_method": "passthrough",
        "models": [{"model": f"{tmp_path}/base+{tmp_path}/out"}],
        "dtype": "float32",
    }
    mergeloom.merge(whole, tmp_path / "merged")
    found = load_file(tmp_path / "merged" / "model.safetensors")
    model = loaded(tmp_path, ["out"]).merge_and_unload()
    for name, tensor in model.state_dict().items():
        if name in found:
            torch.testing.assert_close(found[name], tensor, rtol=2e-6, atol=2e-6, msg=name)


def test_weights_follow_layers_and_names(tmp_path: Path) -> None:
    made(tmp_path, {"one": LINEAR})
    given = document(tmp_path, "cat", ["one"])
    given["adapters"][0]["parameters"]["weight"] = [
        {"filter": "q_proj", "value": [0.0, 2.0]},
        {"value": 1.0},
    ]
    mergeloom.merge(given, tmp_path / "out")
    ours, theirs = (deltas(loaded(tmp_path, [name]), name) for name in ("out", "one"))
    for name, delta in theirs.items():
        factor = (0.0 if ".0." in name else 2.0) if "q_proj" in name else 1.0
        torch.testing.assert_close(ours[name], factor * delta)


def test_weights_beside_adapters_are_taken_from_the_only_one_that_has_them(tmp_path: Path) -> None:
    made(tmp_path, {"one": {**LINEAR, "modules_to_save": ["lm_head"]}, "two": LINEAR})
    with pytest.warns(LoomWarning, match=r"lm_head.weight' is taken from .*one' as it is"):
        mergeloom.merge(document(tmp_path, "svd", ["one", "two"]), tmp_path / "out")
    found, own = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("out", "one"))
    name = "base_model.model.lm_head.weight"
    assert torch.equal(found[name], own[name])
    assert loaded(tmp_path, ["out"]).peft_config["out"].modules_to_save == ["lm_head"]


def test_biases_of_adapters_add_up_where_changes_do(tmp_path: Path) -> None:
    biased = {**LINEAR, "lora_bias": True}
    made(tmp_path, {"one": biased, "two": biased})
    given = document(tmp_path, "svd", ["one", "two"])
    mergeloom.merge(given, tmp_path / "out")
    found, *own = (
        load_file(tmp_path / n / "adapter_model.safetensors") for n in ("out", "one", "two")
    )
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_B.bias"
    torch.testing.assert_close(found[name], 2 * (0.8 * own[0][name] - 0.5 * own[1][name]))
    with pytest.raises(CheckpointError, match="'ties' cannot combine: 'cat' and 'svd' can"):
        mergeloom.plan({**given, "merge_method": "ties"})


def changed(folder: Path, name: str, **settings: Any) -> None:
    """Copy adapter 'one' with other settings."""
    shutil.copytree(folder / "one", folder / name)
    path = folder / name / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_adapters_that_cannot_be_combined_are_refused_by_name(tmp_path: Path) -> None:
    made(
        tmp_path,
        {
            "one": LINEAR,
            "two": {**LINEAR, "r": 2},
            "three": {**LINEAR, "use_dora": True},
        },
    )

    def refusal(method: str, *names: str) -> str:
        adapters = [{"adapter": str(tmp_path / n), "parameters": {"weight": 1}} for n in names]
        with pytest.raises((CheckpointError, ConfigError)) as raised:
            mergeloom.plan({"merge_method": method, "adapters": adapters})
        return str(raised.value)

    assert "ranks for" in refusal("linear", "one", "two")
    assert "'cat', 'svd'" in refusal("ties", "one", "two")
    assert "DoRA" in refusal("svd", "one", "three")
    changed(tmp_path, "other", base_model_name_or_path="acme/other")
    words = refusal("svd", "one", "other")
    assert "is an adapter for" in words
    assert "write 'base_model: MODEL'" in words
    changed(tmp_path, "ia3", peft_type="IA3")
    changed(tmp_path, "parameters", target_parameters=["q_proj.weight"])
    assert "(target_parameters)" in refusal("svd", "one", "parameters")
    assert "of the kind IA3" in refusal("svd", "one", "ia3")
    assert "named twice" in refusal("svd", "one", "one")
    assert "cannot be combined by 'slerp'" in refusal("slerp", "one", "two")
    assert "'adapters' has no value" in refusal("svd")
    nested = refusal("svd", "one", "base+acme/lora")
    assert "base+acme/lora' is a model with an adapter: write 'adapter: acme/lora'" in nested
    changed(tmp_path, "wide")
    path = tmp_path / "wide" / "adapter_model.safetensors"
    wide = {name: t if "lora_B" in name else t.repeat(1, 2) for name, t in load_file(path).items()}
    save_file(wide, path)
    assert ": only adapters of one model can be combined" in refusal("cat", "one", "wide")
    shutil.copytree(tmp_path / "one", tmp_path / "same")
    given = document(tmp_path, "cat", ["one"])
    given["adapters"].append({"adapter": str(tmp_path / "other"), "parameters": {"weight": 1}})
    planned = mergeloom.plan({**given, "base_model": "acme/base"})
    (config,) = [f for f in planned.plan.side_files if f.name == "adapter_config.json"]
    assert json.loads(config.content)["base_model_name_or_path"] == "acme/base"


def test_all_errors_of_a_document_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        mergeloom.plan(
            {
                "merge_method": "ties",
                "adapters": [{"model": "x"}, {"adapter": "y", "parameters": {"weight": "much"}}],
                "parameters": {"majority_sign_method": "both"},
            }
        )
    text = str(raised.value)
    assert "'adapter' is missing" in text
    assert "'weight' must be a number" in text
    assert "'majority_sign_method' must be total or frequency, not 'both'" in text
