"""``diff``: structure from headers, values against float64 numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mergeloom
from mergeloom.cli import app
from mergeloom.engine.base.errors import CheckpointError
from tests.planners.support import llama, llamas, load_tensors, write_checkpoint

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2}
NAMES = (
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.norm.weight",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two fine-tunes of it, which leave much as it was; some tensors are of several
    grains."""
    folder = tmp_path_factory.mktemp("diff")
    generator = torch.Generator().manual_seed(5)
    shapes = ((700, 1000), (1200, 1000), (1200, 1000), (1000,))
    base = {
        name: torch.randn(shape, generator=generator).to(torch.bfloat16)
        for name, shape in zip(NAMES, shapes, strict=True)
    }
    for seed, (model, dtype) in enumerate({"a": torch.bfloat16, "b": torch.float32}.items()):
        generator.manual_seed(seed)
        tensors = {}
        for name, tensor in base.items():
            noise = torch.randn(tensor.shape, generator=generator) * 0.1
            kept = torch.rand(tensor.shape, generator=generator) < 0.4
            tensors[name] = (tensor.float() + noise * kept).to(dtype)
        write_checkpoint(folder / model, tensors, CONFIG)
    write_checkpoint(folder / "base", base, CONFIG)
    return folder


def expected(folder: Path) -> dict[str, dict[str, float]]:
    """What numpy finds in float64."""
    a, b, base = (
        {name: t.double().numpy() for name, t in load_tensors(folder / model).items()}
        for model in ("a", "b", "base")
    )
    found = {}
    for name, one in a.items():
        other, origin = b[name], base[name]
        ta, tb = one - origin, other - origin
        both = (ta != 0) & (tb != 0)
        found[name] = {
            "difference": np.linalg.norm(other - one) / np.linalg.norm(one),
            "cosine": (one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other),
            "changed": float((one != other).mean()),
            "change_a": np.linalg.norm(ta) / np.linalg.norm(origin),
            "change_b": np.linalg.norm(tb) / np.linalg.norm(origin),
            "change_cosine": (ta * tb).sum() / np.linalg.norm(ta) / np.linalg.norm(tb),
            "changed_by_a": float((ta != 0).mean()),
            "changed_by_b": float((tb != 0).mean()),
            "opposed": float((ta * tb < 0).sum() / both.sum()),
        }
    return found


def test_values_agree_with_numpy(folder: Path) -> None:
    found = mergeloom.diff(folder / "a", folder / "b", folder / "base", values=True)
    assert {pair.tensor for pair in found.tensors} == set(NAMES)
    wanted = expected(folder)
    for pair in found.tensors:
        for key, value in wanted[pair.tensor].items():
            exact = key in ("changed", "changed_by_a", "changed_by_b", "opposed")
            near = pytest.approx(value, rel=0 if exact else 1e-6, abs=1e-15)
            assert getattr(pair.values, key) == near, (pair.tensor, key)


def test_several_tensors_are_compared_as_one_vector(folder: Path) -> None:
    found = mergeloom.diff(folder / "a", folder / "b", folder / "base", values=True)
    a, b = ({k: v.double() for k, v in load_tensors(folder / m).items()} for m in ("a", "b"))
    one = torch.cat([a[name].flatten() for name in sorted(a)])
    other = torch.cat([b[name].flatten() for name in sorted(a)])
    assert found.whole is not None
    assert found.whole.elements == one.numel()
    assert found.whole.difference == pytest.approx(float((other - one).norm() / one.norm()))
    assert found.whole.change_cosine is not None
    assert [group.name for group in found.layers] == ["outside the layers", "layer 0", "layer 1"]
    layer = {name: values for name, values in a.items() if ".1." in name}
    (name,) = layer
    assert found.layers[2].values == next(
        pair.values for pair in found.tensors if pair.tensor == name
    )
    assert {group.name: group.tensors for group in found.kinds} == {
        "mlp.up_proj.weight": 2,
        "model.embed_tokens.weight": 1,
        "model.norm.weight": 1,
    }


def test_budget_and_threads_change_no_number(folder: Path) -> None:
    models = folder / "a", folder / "b", folder / "base"
    plain = mergeloom.diff(*models, values=True)
    with pytest.raises(mergeloom.BudgetError, match="are enough") as error:
        mergeloom.diff(*models, ram="1MiB")
    smallest = error.value.remedy.split()[0]
    assert mergeloom.diff(*models, values=True, ram=f"{smallest}MiB", threads=1) == plain
    assert mergeloom.diff(*models, values=True, threads=3) == plain


def test_a_model_does_not_differ_from_itself(folder: Path) -> None:
    found = mergeloom.diff(folder / "a", folder / "a", folder / "a", values=True)
    whole = found.whole
    assert whole is not None
    assert (whole.difference, whole.changed, whole.change_a, whole.opposed) == (0, 0, 0, None)
    assert whole.cosine == pytest.approx(1)


def test_structure_is_compared_from_headers_alone(tmp_path: Path) -> None:
    llama(tmp_path / "a")
    llama(tmp_path / "b", layers=5, seed=1, vocabulary=40, tied=True, dtype=torch.bfloat16)
    found = mergeloom.diff(tmp_path / "a", tmp_path / "b")
    assert found.only_a == ("lm_head.weight",)
    assert len(found.only_b) == 9
    assert found.whole is None
    differing = [pair for pair in found.tensors if pair.obstacle]
    assert [(p.tensor, p.obstacle) for p in differing] == [
        ("model.embed_tokens.weight", "shapes differ")
    ]
    settings = {each.key: (each.a, each.b) for each in found.settings}
    assert settings["num_hidden_layers"] == (4, 5)
    assert "torch_dtype" not in settings
    values = mergeloom.diff(tmp_path / "a", tmp_path / "b", values=True)
    assert values.whole is not None
    assert values.read_bytes == found.read_bytes
    assert sum(pair.values is not None for pair in values.tensors) == len(found.tensors) - 1
    (tmp_path / "other").mkdir()
    write_checkpoint(tmp_path / "other", {"w": torch.ones(2)}, {})
    with pytest.raises(CheckpointError, match="have no tensor in common: the first begins with"):
        mergeloom.diff(tmp_path / "a", tmp_path / "other")
    with pytest.raises(CheckpointError, match="in common whose name contains 'qproj'"):
        mergeloom.diff(tmp_path / "a", tmp_path / "b", match="qproj")


def test_forms_of_one_setting_are_no_difference(tmp_path: Path) -> None:
    tensors = {name: torch.ones(2, 2) for name in NAMES}
    older = {**CONFIG, "rope_theta": 500000.0, "rms_norm_eps": 1e-6, "attention_dropout": 0.0}
    newer = {**CONFIG, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    write_checkpoint(tmp_path / "older", tensors, older)
    write_checkpoint(tmp_path / "newer", tensors, newer)
    found = mergeloom.diff(tmp_path / "older", tmp_path / "newer").settings
    assert [(each.key, each.a, each.b) for each in found] == [("attention_dropout", 0.0, None)]
    write_checkpoint(tmp_path / "other", tensors, {**older, "rope_theta": 10000.0})
    found = mergeloom.diff(tmp_path / "other", tmp_path / "newer").settings
    assert ("rope_theta", 10000.0, 500000.0) in [(each.key, each.a, each.b) for each in found]


def test_undefined_numbers_are_none(tmp_path: Path) -> None:
    zero, one = torch.zeros(4), torch.tensor([1.0, float("nan"), 0.0, 2.0])
    write_checkpoint(tmp_path / "a", {"w": zero, "v": zero.clone()}, {})
    write_checkpoint(tmp_path / "b", {"w": zero + 1, "v": one}, {})
    found = mergeloom.diff(tmp_path / "a", tmp_path / "b", values=True)
    values: dict[str, Any] = {pair.tensor: pair.values for pair in found.tensors}
    assert (values["w"].difference, values["w"].cosine, values["w"].changed) == (None, None, 1.0)
    assert (values["v"].difference, values["v"].changed) == (None, 0.75)


def test_differences_are_printed_and_written_as_json(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [str(folder / name) for name in ("a", "b", "base")]
    app(["diff", *models, "--values"], standalone_mode=False)
    out = capsys.readouterr().out
    assert "b differs from a by" in out
    assert "go in opposite directions" in out or "goes in opposite directions" in out
    assert "layer 1 " in out
    app(["diff", *models, "--values", "--json", "-q"], standalone_mode=False)
    document = json.loads(capsys.readouterr().out)
    assert document["document"] == "diff"
    assert document["whole"]["elements"] == 3_101_000
    app(["diff", *models[:2], "--match", "norm"], standalone_mode=False)
    assert "--values compares the values too: reads 6 kB" in capsys.readouterr().out


def test_differences_from_inputs_agree_with_diff(folder: Path, tmp_path: Path) -> None:
    models = {name: str(folder / name) for name in ("a", "b", "base")}
    config = {
        "merge_method": "task_arithmetic",
        "base_model": models["base"],
        "models": [{"model": models[name], "parameters": {"weight": 0.5}} for name in "ab"],
    }
    mergeloom.merge(config, tmp_path / "out")
    found = mergeloom.diff_inputs(tmp_path / "out")
    by_name = {each.a.name: each for each in found.inputs}
    assert set(by_name) == set(models.values())
    for name, base in (("a", folder / "base"), ("base", None)):
        wanted = mergeloom.diff(models[name], tmp_path / "out", base, values=True)
        one = by_name[models[name]]
        assert (one.whole, one.layers, one.tensors) == (wanted.whole, wanted.layers, wanted.tensors)
    assert found.read_bytes < sum(each.read_bytes for each in found.inputs)  # each file once


def test_plain_weight_files_are_compared_with_their_inputs_and_adapters_refused(
    tmp_path: Path,
) -> None:
    llamas(tmp_path, "ab")
    files = [str(tmp_path / name / "model.safetensors") for name in "ab"]
    models = [{"model": file, "parameters": {"weight": 1}} for file in files]
    mergeloom.merge({"merge_method": "linear", "models": models}, tmp_path / "out")
    found = mergeloom.diff_inputs(tmp_path / "out")
    assert [each.a.name for each in found.inputs] == files
    assert all(each.whole is not None and each.whole.changed for each in found.inputs)
    (tmp_path / "out" / "adapter_config.json").write_text("{}")
    with pytest.raises(mergeloom.OutputError, match="is an adapter"):
        mergeloom.diff_inputs(tmp_path / "out")


def test_layers_of_a_stack_are_compared_with_their_sources(tmp_path: Path) -> None:
    llamas(tmp_path, "ab")
    parts = (("a", [0, 3]), ("b", [1, 4]))
    slices = [
        {"sources": [{"model": str(tmp_path / name), "layer_range": layers}]}
        for name, layers in parts
    ]
    mergeloom.merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    _, second = mergeloom.diff_inputs(tmp_path / "out").inputs
    assert second.whole is not None
    assert (second.whole.difference, second.whole.changed) == (0, 0)
    pairs = {pair.tensor: pair.tensor_a for pair in second.tensors}
    name = "model.layers.{}.mlp.up_proj.weight"
    assert pairs[name.format(5)] == name.format(3)
    assert name.format(2) not in pairs
    command = ["report", str(tmp_path / "out"), "--diff", "--json"]
    assert not app(command, standalone_mode=False)
