"""Every format of weights passes these tests: a new one is added to `WRITERS`."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.run.arrange import read_content
from mergeloom.engine.storage.source import ReadOptions
from mergeloom.planners.models.checkpoint import open_checkpoint
from mergeloom.planners.models.formats import FORMATS, SAFETENSORS, TORCH, WeightFormat

Tensors = Mapping[str, torch.Tensor]

WRITERS: dict[str, tuple[WeightFormat, Callable[[Tensors, Path], None]]] = {
    "safetensors": (SAFETENSORS, lambda tensors, path: save_file(dict(tensors), path)),
    "torch": (TORCH, lambda tensors, path: torch.save(dict(tensors), path)),
}

TENSORS: Tensors = {
    "model.embed_tokens.weight": torch.randn(40, 24).bfloat16(),
    "model.layers.0.mlp.weight": torch.randn(24, 60).half(),
    "model.layers.0.scale": torch.tensor(3.5),
    "model.layers.0.nothing": torch.empty(0, 7),
    "model.layers.0.ids": torch.arange(9),
    "model.layers.0.mask": torch.tensor([True, False, True]),
    "model.layers.1.double": torch.randn(5, 3, 2, dtype=torch.float64),
    "model.layers.1.tiny": torch.randn(8, 4).to(torch.float8_e5m2),
    "lm_head.wéight": torch.randn(3),
}


@pytest.fixture(params=WRITERS)
def written(request: pytest.FixtureRequest) -> tuple[WeightFormat, Callable[[Tensors, Path], None]]:
    return WRITERS[request.param]


def checkpoint(directory: Path, files: Mapping[str, Tensors], write: Callable[..., None]) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    for name, tensors in files.items():
        write(tensors, directory / name)
    return directory


def halves() -> tuple[Tensors, Tensors]:
    items = list(TENSORS.items())
    return dict(items[::2]), dict(items[1::2])


def shards(how: WeightFormat) -> dict[str, Tensors]:
    first, second = halves()
    return {f"model-{n}-of-2{how.suffixes[0]}": each for n, each in ((1, first), (2, second))}


def index_of(files: Mapping[str, Tensors]) -> str:
    return json.dumps({"weight_map": {t: name for name, each in files.items() for t in each}})


def assert_is_read(directory: Path) -> None:
    found = open_checkpoint(directory).tensors
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].dtype.torch == tensor.dtype
        if tensor.numel():
            raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            assert bytes(read_content(found[name], ReadOptions())) == raw


def test_every_format_is_tested_here() -> None:
    assert {id(how) for how, _ in WRITERS.values()} == {id(how) for how in FORMATS}


def test_a_single_file_is_read(
    tmp_path: Path, written: tuple[WeightFormat, Callable[..., None]]
) -> None:
    how, write = written
    assert_is_read(checkpoint(tmp_path / "one", {how.single: TENSORS}, write))
    assert_is_read(checkpoint(tmp_path / "named", {f"weights{how.suffixes[0]}": TENSORS}, write))


def test_shards_are_read_with_and_without_an_index(
    tmp_path: Path, written: tuple[WeightFormat, Callable[..., None]]
) -> None:
    how, write = written
    files = shards(how)
    directory = checkpoint(tmp_path / "shards", files, write)
    assert_is_read(directory)
    identity = open_checkpoint(directory).identity
    (directory / how.index).write_text(index_of(files))
    assert_is_read(directory)
    assert open_checkpoint(directory).identity == identity


def test_incomplete_shards_are_refused(
    tmp_path: Path, written: tuple[WeightFormat, Callable[..., None]]
) -> None:
    how, write = written
    files = shards(how)
    first, second = files
    directory = checkpoint(tmp_path / "shards", files, write)
    (directory / second).unlink()
    with pytest.raises(CheckpointError, match="has 1 of the 2 shards"):
        open_checkpoint(directory)
    (directory / how.index).write_text(index_of(files))
    with pytest.raises(CheckpointError, match=f"lacks the shard '{second}'"):
        open_checkpoint(directory)
    write(files[first], directory / second)
    with pytest.raises(CheckpointError, match=r"lacks '.*' and . more, which the index lists"):
        open_checkpoint(directory)
    (directory / how.index).unlink()
    with pytest.raises(CheckpointError, match=f"is in '{first}' and in '{second}'"):
        open_checkpoint(directory)


def test_a_damaged_file_is_refused_with_a_clear_error(
    tmp_path: Path, written: tuple[WeightFormat, Callable[..., None]]
) -> None:
    how, write = written
    path = checkpoint(tmp_path / "one", {how.single: TENSORS}, write) / how.single
    whole, chance = path.read_bytes(), random.Random(4)
    for _ in range(40):
        path.write_bytes(whole[: chance.randrange(len(whole))])
        with pytest.raises(CheckpointError, match=how.single):
            open_checkpoint(path.parent)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError):
        open_checkpoint(path.parent)


def test_a_link_that_leads_outside_is_refused(
    tmp_path: Path, written: tuple[WeightFormat, Callable[..., None]]
) -> None:
    how, write = written
    write(TENSORS, tmp_path / "elsewhere")
    directory = checkpoint(tmp_path / "one", {}, write)
    (directory / how.single).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="leads outside"):
        open_checkpoint(directory)
