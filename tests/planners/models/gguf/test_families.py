"""Models of every family in GGUF files: weights and configuration as transformers has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mergeloom import merge, plan
from mergeloom.engine.base.errors import CheckpointError, LoomError
from tests.planners.models.gguf.files import (
    FAMILIES,
    KINDS,
    MIXTURES,
    VOCABULARY,
    Kind,
    byte_words,
    write_gguf,
)

IDS = torch.arange(5, 25)[None]


def copied(path: Path, out: Path, **options: Any) -> Path:
    """What merging a model with nothing makes of it."""
    merge({"merge_method": "passthrough", "models": [{"model": str(path)}]}, out, **options)
    return out


def loaded(path: Path, **options: Any) -> Any:
    """A model as transformers loads it: everything that it needs is there, and nothing else."""
    model, report = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True, **options
    )
    assert (report["missing_keys"], report["unexpected_keys"]) == (set(), set())
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def same_weights(one: Any, other: Any, within: float = 0.0) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, values in first.items():
        torch.testing.assert_close(values, second[name], rtol=0, atol=within, msg=name)


@pytest.mark.parametrize("name", [*FAMILIES, *MIXTURES])
def test_a_file_is_the_model_that_it_was_made_of(name: str, tmp_path: Path) -> None:
    kind = {**FAMILIES, **MIXTURES}[name]
    model = kind.model()
    path = write_gguf(tmp_path / "small.gguf", kind, model)
    found = loaded(copied(path, tmp_path / "out"))
    same_weights(found, model, 2e-7 if kind.has_offset_norms else 0.0)
    torch.testing.assert_close(logits(found), logits(model), rtol=0, atol=1e-4)
    assert type(found) is type(model)


def words(writer: gguf.GGUFWriter) -> None:
    byte_words(writer, [f"<|{number}|>" for number in range(VOCABULARY)], ["a b"])


@pytest.mark.parametrize(
    "name", ["llama", "qwen2", "gemma2", "gemma3", "phi3", "qwen2moe", "qwen3moe"]
)
def test_a_quantised_file_agrees_with_transformers(name: str, tmp_path: Path) -> None:
    kind = {**FAMILIES, **MIXTURES}[name]
    model = kind.model()
    path = write_gguf(tmp_path / "small.gguf", kind, model, KINDS.Q8_0, words)
    out = tmp_path / "out"
    merge(
        {
            "merge_method": "passthrough",
            "dtype": "float32",
            "models": [{"model": str(path)}],
        },
        out,
    )
    known = {"config": model.config} if name in MIXTURES else {}  # sizes that it does not read
    expected = loaded(tmp_path, gguf_file="small.gguf", **known)
    found = loaded(out)
    same_weights(found, expected)
    if kind.more.keys() <= {"sliding_window"}:  # transformers leaves other settings out
        torch.testing.assert_close(logits(found), logits(expected), rtol=0, atol=1e-4)


def test_parts_of_a_file_are_one_model(tmp_path: Path) -> None:
    kind = FAMILIES["llama"]
    model = kind.model()
    first = write_gguf(tmp_path / "in" / "whole.gguf", kind, model, parts=3)
    for number, given in enumerate((first, first.parent, sorted(first.parent.iterdir())[2])):
        same_weights(loaded(copied(given, tmp_path / f"out{number}")), model)
    sorted(first.parent.iterdir())[1].unlink()
    with pytest.raises(CheckpointError, match="lacks 1 of the 3 parts of 'whole'"):
        plan({"merge_method": "passthrough", "models": [{"model": str(first)}]})


def test_several_models_in_a_folder_are_told_apart(tmp_path: Path) -> None:
    kind = FAMILIES["llama"]
    for name in ("a.Q8_0.gguf", "a.f32.gguf"):
        write_gguf(tmp_path / "in" / name, kind, kind.model())
    with pytest.raises(CheckpointError, match=r"has 2 GGUF files .* name one of them"):
        plan({"merge_method": "passthrough", "models": [{"model": str(tmp_path / "in")}]})


def test_a_file_is_merged_with_the_model_it_was_made_of(tmp_path: Path) -> None:
    """A file is merged with a folder of transformers, in the order of its rows and by value."""
    kind = FAMILIES["mistral"]
    one, other = kind.model(1), kind.model(2)
    path = write_gguf(tmp_path / "one.gguf", kind, one)
    other.save_pretrained(tmp_path / "other")
    models = [
        {"model": str(each), "parameters": {"weight": 0.5}} for each in (path, tmp_path / "other")
    ]
    merge({"merge_method": "linear", "dtype": "float32", "models": models}, tmp_path / "out")
    found = loaded(tmp_path / "out").state_dict()
    for name, values in other.state_dict().items():
        torch.testing.assert_close(found[name], (values + one.state_dict()[name]) / 2)


def test_experts_are_merged_by_value(tmp_path: Path) -> None:
    """A quantised file of experts with the folder of its original, at the least budget too."""
    kind = MIXTURES["mixtral"]
    model = kind.model(1)
    path = write_gguf(tmp_path / "one.gguf", kind, model, KINDS.Q8_0)
    kind.model(2).save_pretrained(tmp_path / "other")
    models = [
        {"model": str(each), "parameters": {"weight": 0.5}} for each in (path, tmp_path / "other")
    ]
    asked = {"merge_method": "linear", "dtype": "float32", "models": models}
    smallest = plan(asked).schedule.minimum_bytes
    merge(asked, tmp_path / "out", ram=smallest)
    merge(asked, tmp_path / "large")
    written = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("out", "large")]
    assert written[0] == written[1]
    found, other = loaded(tmp_path / "out").state_dict(), loaded(tmp_path / "other").state_dict()
    name = "model.layers.1.mlp.experts.down_proj"
    stored = gguf.quantize(model.state_dict()[name].numpy(), KINDS.Q8_0)
    values = torch.from_numpy(gguf.dequantize(stored, KINDS.Q8_0))
    torch.testing.assert_close(found[name], (values + other[name]) / 2)


def factors(factor: float, theta: float, width: int) -> np.ndarray:
    """What ggml's converter makes of the settings of llama 3, by transformers' own function."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": theta,
    }
    config = LlamaConfig(head_dim=width, rope_parameters=settings)
    inverse, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / theta ** (torch.arange(0, width, 2).float() / width)
    return (plain / inverse).numpy()


def test_factors_of_the_rotary_embedding_become_settings(tmp_path: Path) -> None:
    kind = Kind(
        "Llama", "llama", {"rope_theta": 500000.0, "head_dim": 64}, has_interleaved_rows=True
    )
    model = kind.model()
    theta = model.config.rope_parameters["rope_theta"]
    more = {"rope_freqs.weight": factors(8.0, theta, 64)}
    path = write_gguf(tmp_path / "small.gguf", kind, model, more=more)
    config = json.loads((copied(path, tmp_path / "out") / "config.json").read_text())
    assert config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    left = plan(
        {"merge_method": "passthrough", "models": [{"model": str(path)}]}
    ).report.unused_inputs
    assert [name for each in left for name in each.tensors] == ["rope_freqs.weight"]
    more = {"rope_freqs.weight": np.linspace(1, 3, 32, dtype=np.float32)}
    path = write_gguf(tmp_path / "odd.gguf", kind, model, more=more)
    with pytest.raises(CheckpointError, match="no setting of transformers produces"):
        copied(path, tmp_path / "out2")


def test_unknown_families_types_and_tokenizers_are_refused_by_name(tmp_path: Path) -> None:
    kind = FAMILIES["llama"]
    model = kind.model()

    def refused(path: Path) -> str:
        with pytest.raises(LoomError) as error:
            plan({"merge_method": "passthrough", "models": [{"model": str(path)}]})
        assert "\n" not in str(error.value)
        return str(error.value)

    writer = gguf.GGUFWriter(tmp_path / "t5.gguf", "t5")
    writer.add_tensor("token_embd.weight", np.zeros((VOCABULARY, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "architecture 't5'" in refused(tmp_path / "t5.gguf")
    gemma, mixtral = FAMILIES["gemma"], MIXTURES["mixtral"]
    path = write_gguf(
        tmp_path / "moe.gguf", gemma, gemma.model(), describe=lambda w: w.add_expert_count(8)
    )
    assert "is a mixture of experts of the architecture 'gemma'" in refused(path)
    fewer = {"blk.1.ffn_up_exps.weight": np.zeros((3, 96, 64), np.float32)}
    path = write_gguf(tmp_path / "fewer.gguf", mixtral, mixtral.model(), more=fewer)
    assert "'blk.1.ffn_up_exps.weight' (3x96x64) does not hold 4 experts" in refused(path)
    path = write_gguf(
        tmp_path / "odd.gguf", kind, model, more={"blk.0.odd.weight": np.zeros(4, np.float32)}
    )
    assert "'blk.0.odd.weight'" in refused(path)
    path = write_gguf(
        tmp_path / "words.gguf", kind, model, describe=lambda w: w.add_tokenizer_model("rwkv")
    )
    assert "the kind 'rwkv'" in refused(path)
    assert "no GGUF" not in refused(tmp_path / "nowhere.gguf")
