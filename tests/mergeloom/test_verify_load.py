"""What transformers would miss in an output, without loading its weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from mergeloom import api, queries
from mergeloom.engine.base.errors import LoomError
from mergeloom.report.loading import loading_report
from mergeloom.report.records import VerifyReport
from mergeloom.report.terminal.verification import render_verify
from tests.families.tiny import make_model
from tests.planners.support import llama, load_tensors


def change(directory: Path, **config: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    make_model("MixtralForCausalLM", {"tie_word_embeddings": True}).save_pretrained(directory)
    return directory


def faults(directory: Path) -> list[tuple[str, str]]:
    return [(fault.what, fault.why) for fault in loading_report(directory).faults]


def test_a_model_written_by_transformers_has_no_fault(model: Path) -> None:
    """Experts are stored one by one and joined by the class; the head is tied."""
    found = loading_report(model)
    assert (found.class_name, found.faults) == ("MixtralForCausalLM", ())
    assert found.tensors == len(load_tensors(model))


def test_missing_superfluous_and_misshapen_tensors_are_named(model: Path) -> None:
    tensors = load_tensors(model)
    tensors["model.layers.9.mlp.weight"] = tensors.pop("model.layers.0.self_attn.q_proj.weight")
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    assert faults(model) == [
        (
            "model.layers.0.self_attn.q_proj.weight",
            "the class needs it, but it is missing: it would be random",
        ),
        ("model.layers.9.mlp.weight", "the class does not use it: it would be ignored"),
        ("model.norm.weight", "it is 7, in the class 16"),
    ]


def test_a_depth_that_contradicts_the_configuration_is_found(model: Path) -> None:
    change(model, num_hidden_layers=3)
    found = faults(model)
    assert found
    assert all(name.startswith("model.layers.3.") for name, _ in found)


def test_a_configuration_that_no_model_can_have_is_a_fault(model: Path) -> None:
    change(model, num_attention_heads="two")
    ((what, why),) = faults(model)
    assert what == "config.json"
    assert "num_attention_heads" in why


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (
            {"architectures": ["OwnModel"], "auto_map": {"AutoModel": "own.OwnModel"}},
            r"code in its own directory \(auto_map\), which is not run",
        ),
        ({"architectures": None}, r"config\.json names no class \('architectures'\)"),
        (
            {"architectures": ["OwnModel"], "model_type": "own"},
            r"transformers \S+ has no 'OwnModel' \(model_type 'own'\)",
        ),
        ({"architectures": ["os"]}, "has no 'os'"),
    ],
)
def test_a_model_that_cannot_be_compared_is_reported(
    tmp_path: Path, config: dict[str, Any], why: str
) -> None:
    change(llama(tmp_path / "a"), **config)
    with pytest.raises(LoomError, match=why):
        loading_report(tmp_path / "a")


def test_without_transformers_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(LoomError, match="which is not installed: pip install transformers"):
        loading_report(llama(tmp_path / "a"))


def test_verify_tells_whether_an_output_loads(model: Path, tmp_path: Path) -> None:
    config = {"merge_method": "passthrough", "models": [{"model": str(model)}]}
    out = tmp_path / "out"
    api.merge(config, out)
    found = queries.verify(out, load=True)
    assert found.sound
    assert shown(found).endswith("finds all that the class needs, and nothing else")
    assert queries.verify(out).loading is None


def test_faults_of_loading_are_shown(model: Path, tmp_path: Path) -> None:
    change(model, tie_word_embeddings=False)
    report = VerifyReport(
        output="out",
        finished=True,
        sound=False,
        tensors=1,
        bytes=1,
        wrong=(),
        loading=loading_report(model),
    )
    text = shown(report)
    assert "lm_head.weight: the class needs it, but it is missing" in text
    assert text.endswith("'out' has 1 fault, loaded as MixtralForCausalLM")


def shown(report: VerifyReport) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(render_verify(report))
    return captured.get().strip()
