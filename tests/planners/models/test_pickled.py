"""Checkpoints that `torch.save` wrote merge to the same bytes as safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mergeloom
from mergeloom.engine.base.errors import CheckpointError
from tests.planners.support import llama_names, write_checkpoint

CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 32}


def single(folder: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, folder / "pytorch_model.bin")


def sharded(folder: Path, state: dict[str, torch.Tensor]) -> None:
    names = list(state)
    places = {}
    for number in range(3):
        part = names[number::3]
        file = f"pytorch_model-{number + 1:05d}-of-00003.bin"
        torch.save({name: state[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def lightning(folder: Path, state: dict[str, torch.Tensor]) -> None:
    inside = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": inside, "epoch": 1}, folder / "last.ckpt")
    torch.save({"exp_avg": torch.ones(3)}, folder / "optimizer.pt")


def transposed(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Matrices whose storage holds them the other way round."""
    single(folder, {name: t.T.contiguous().T if t.dim() == 2 else t for name, t in state.items()})


@pytest.mark.parametrize("write", [single, sharded, lightning, transposed])
@pytest.mark.parametrize("method", ["passthrough", "linear", "ties"])
def test_pickled_weights_give_the_same_bytes_as_safetensors(
    method: str, write: Callable[[Path, dict[str, torch.Tensor]], None], tmp_path: Path
) -> None:
    names = llama_names(2)
    for number, model in enumerate(("a", "b")):
        write_checkpoint(tmp_path / model, names, CONFIG, seed=number, dtype=torch.bfloat16)
        (tmp_path / f"{model}-pickled").mkdir()
        (tmp_path / f"{model}-pickled" / "config.json").write_text(json.dumps(CONFIG))
        write(tmp_path / f"{model}-pickled", load_file(tmp_path / model / "model.safetensors"))

    def out(suffix: str, **options: Any) -> dict[str, torch.Tensor]:
        a, b = ({"model": f"{tmp_path}/{name}{suffix}"} for name in "ab")
        weight = {"parameters": {"weight": 0.5, "density": 0.5}}
        config = {
            "passthrough": {"models": [a]},
            "linear": {"models": [a | weight, b | weight]},
            "ties": {"models": [b | weight], "base_model": a["model"]},
        }[method]
        target = tmp_path / f"out{suffix}{len(options)}"
        mergeloom.merge({"merge_method": method, **config}, target, **options)
        return load_file(target / "model.safetensors")

    plain, pickled = out(""), out("-pickled")
    assert plain.keys() == pickled.keys()
    assert all(torch.equal(plain[name], pickled[name]) for name in plain)


def test_pickles_beside_safetensors_are_not_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", llama_names(2), CONFIG)
    (tmp_path / "a" / "pytorch_model.bin").write_bytes(b"whatever")
    config = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "a")}]}
    assert mergeloom.plan(config).plan.layers == 2


def test_several_candidate_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for name in ("best.pt", "last.pt"):
        torch.save({"a": torch.ones(2)}, tmp_path / name)
    config = {"merge_method": "passthrough", "models": [{"model": str(tmp_path)}]}
    with pytest.raises(CheckpointError, match=r"several files of weights \(best\.pt, last\.pt\)"):
        mergeloom.plan(config)
