"""Every method from YAML to files: the same bytes for every budget, and what the paper says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import mergeloom
from mergeloom import check as checking
from mergeloom.engine.base.errors import RunError
from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.arithmetic import Arithmetic
from mergeloom.engine.hardware import process as machine
from mergeloom.engine.hardware.process import resident_bytes
from mergeloom.engine.hardware.spec import Machine
from mergeloom.methods import registry
from mergeloom.methods.reference import evaluate
from scripts.bench.configurations import configuration
from tests.mergeloom.support import method_as_json
from tests.methods.support import assert_close, tensor_merge
from tests.planners.support import load_tensors, write_checkpoint

SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (1700, 700),  # three grains
    "model.layers.0.mlp.up_proj.weight": (333, 257),
    "model.layers.0.mlp.gain": (),
    "model.layers.0.norm.weight": (129,),
    "model.layers.1.mlp.up_proj.weight": (2, 700_001),
    "model.layers.1.mlp.gain": (),
    "model.layers.1.norm.weight": (1,),
    "model.norm.weight": (70_001,),
}
DTYPES = {
    "base": torch.bfloat16,
    "one": torch.bfloat16,
    "two": torch.float16,
    "three": torch.float32,
}


def this_machine(arithmetic: Arithmetic, torch: Arithmetic, threads: int | None = None) -> Machine:
    """A process that always occupies the same, so that budgets can be tight."""
    return Machine(threads or 2, 300 * MIB, 0, arithmetic, torch)


@pytest.fixture(scope="module", autouse=True)
def fixed_machine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "this_machine", this_machine)
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and three fine-tunes of it, each in a type of its own."""
    folder = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    for name, dtype in DTYPES.items():
        share = 0.0 if name == "base" else 0.1
        tensors = {
            key: (tensor + share * torch.randn(tensor.shape, generator=generator)).to(dtype)
            for key, tensor in base.items()
        }
        config = {"num_hidden_layers": 2, "tie_word_embeddings": True, "vocab_size": 1700}
        write_checkpoint(folder / name, tensors, config)
    return folder


def config_of(method: str, models: Path) -> dict[str, Any]:
    tunes = [models / name for name in ("one", "two", "three")]
    return configuration(method_as_json(method), models / "base", tunes, 2)


def digests(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.iterdir()
        if path.is_file()
    }


@pytest.mark.parametrize("method", registry.names())
def test_budgets_and_threads_change_no_byte(method: str, models: Path, tmp_path: Path) -> None:
    config = config_of(method, models)
    free = mergeloom.merge(config, tmp_path / "free", ram="8GiB", threads=2, check=100)
    assert free.checked is not None
    assert (free.checked.tensors, free.checked.passed_over) == (len(SHAPES), {})
    smallest = free.planned.schedule.minimum_bytes
    for ram, threads in ((smallest, 1), (smallest + 8 * MIB, 8)):
        out = tmp_path / f"{ram}"
        tight = mergeloom.merge(config, out, ram=ram, threads=threads)
        assert tight.planned.schedule.peak_bytes <= ram
        assert digests(out) == digests(tmp_path / "free")


MERGED: dict[str, tuple[tuple[str, ...], dict[str, float], int | None, dict[str, float]]] = {
    "linear": (("one", "two"), {"weight": 0.4}, None, {}),
    "slerp": (("one", "two"), {}, 0, {"t": 0.5}),
    "task_arithmetic": (("base", "one", "two", "three"), {"weight": 0.4}, 0, {}),
    "ties": (("base", "one", "two", "three"), {"weight": 0.4, "density": 0.5}, 0, {}),
}
"""The inputs of each method, their parameters, the position of the base, settings."""


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        *(("linear", dtype) for dtype in ("bfloat16", "float16", "float32")),
        ("slerp", "bfloat16"),
        ("task_arithmetic", "float16"),
        ("ties", "float32"),
    ],
)
def test_results_agree_with_the_published_formula(
    method: str, dtype: str, models: Path, tmp_path: Path
) -> None:
    config = {**config_of(method, models), "dtype": dtype}
    mergeloom.merge(config, tmp_path / "out", ram=448 * MIB, threads=2)
    names, each, base, settings = MERGED[method]
    inputs = [load_tensors(models / name) for name in names]
    merged = load_tensors(tmp_path / "out")
    assert merged.keys() == SHAPES.keys()
    for name, shape in SHAPES.items():
        assert merged[name].dtype == getattr(torch, dtype)
        assert merged[name].shape == shape
        merge = tensor_merge(method, shape, [each] * len(names), base, **settings)
        answer = evaluate(method, merge, [tensors[name] for tensors in inputs])
        assert answer is not None
        assert_close(merged[name], answer)


def test_copies_are_byte_for_byte(models: Path, tmp_path: Path) -> None:
    config = {"merge_method": "passthrough", "models": [str(models / "two")]}
    mergeloom.merge(config, tmp_path / "out")
    before, after = load_tensors(models / "two"), load_tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_stages_equal_their_merges_one_by_one(models: Path, tmp_path: Path) -> None:
    """Two documents in one file give what two merges through float32 files give."""
    first = {
        "merge_method": "linear",
        "models": [
            {"model": str(models / name), "parameters": {"weight": weight}}
            for name, weight in (("one", 1.0), ("two", 3.0))
        ],
    }
    second = {
        "merge_method": "slerp",
        "models": [str(models / "three")],
        "parameters": {"t": 0.3},
        "dtype": "bfloat16",
    }
    mergeloom.merge({**first, "dtype": "float32"}, tmp_path / "between")
    between = {**second, "base_model": str(tmp_path / "between")}
    mergeloom.merge(between, tmp_path / "by_files")
    import yaml

    text = yaml.safe_dump({**first, "name": "between"}) + "---\n"
    text += yaml.safe_dump({**second, "base_model": "between"})
    (tmp_path / "stages.yml").write_text(text)
    mergeloom.merge(tmp_path / "stages.yml", tmp_path / "by_stages", ram=420 * MIB)
    one, other = load_tensors(tmp_path / "by_files"), load_tensors(tmp_path / "by_stages")
    assert one.keys() == other.keys() == SHAPES.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_check_finds_wrong_tensors_and_counts_skipped_ones(models: Path, tmp_path: Path) -> None:
    config = config_of("slerp", models)
    done = mergeloom.merge(config, tmp_path / "out", ram="8GiB", threads=2)
    plan, out = done.planned.plan, tmp_path / "out"
    small = checking.check_output(plan, out, 100, resident_bytes() + 16 * MIB)
    assert 0 < small.tensors < len(SHAPES)
    assert small.passed_over == {"too large for the memory budget": len(SHAPES) - small.tensors}
    (write,) = [write for write in plan.graph.writes if write.name.endswith("1.norm.weight")]
    with open(out / write.file.name, "r+b") as file:
        file.seek(write.offset)
        content = bytearray(file.read(write.nbytes))
        content[-2] ^= 2
        file.seek(write.offset)
        file.write(content)
    with pytest.raises(RunError, match=r"'model\.layers\.1\.norm\.weight'.*wrong in 1 of 1"):
        mergeloom.merge(config, out, ram="8GiB", threads=2, check=100)


def test_a_check_takes_rows_of_tensors_that_are_too_large(models: Path, tmp_path: Path) -> None:
    config = config_of("linear", models)
    plan = mergeloom.merge(config, tmp_path / "out", ram="8GiB").planned.plan
    found = checking.check_output(plan, tmp_path / "out", 100, resident_bytes() + 128 * MIB)
    assert found.tensors == len(SHAPES)
    assert found.elements < plan.parameters
    assert not found.passed_over


def test_a_check_skips_tensors_computed_by_several_stages(models: Path, tmp_path: Path) -> None:
    (tmp_path / "stages.yml").write_text(
        "name: half\nmerge_method: passthrough\nmodels: [one]\n---\n"
        "merge_method: passthrough\nmodels: [half]\n"
    )
    done = mergeloom.merge(tmp_path / "stages.yml", tmp_path / "out", search=[models], check=3)
    assert done.checked is not None
    assert done.checked.tensors == 0
    assert done.checked.passed_over == {
        "computed from an earlier stage, an adapter or quantised weights": len(SHAPES)
    }
