"""The bench: configurations that mergeloom plans, memory groups, a whole run on tiny models."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import mergeloom
from mergeloom.methods import registry
from scripts.bench import compare as benchmark
from scripts.bench.cgroup import MemoryGroup
from scripts.bench.configurations import configuration, model_directories
from scripts.bench.measure import run
from scripts.fixtures.shapes import SHAPES
from tests.mergeloom.support import method_as_json


def can_make_groups() -> bool:
    try:
        with MemoryGroup(64 << 20):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    work = tmp_path_factory.mktemp("bench")
    return work, *benchmark.checkpoints(work, "tiny")


@pytest.mark.parametrize("name", registry.names())
def test_every_method_has_a_configuration(models, name):
    work, base, tunes = models
    document = configuration(method_as_json(name), base, tunes, 4)
    path = work / f"{name}.yml"
    path.write_text(json.dumps(document))
    planned = mergeloom.plan(path, ram="4GiB").document()
    assert planned["method"] == name
    assert not planned["unused_inputs"] or name == "passthrough"
    found = {model["directory"] for model in planned["models"]}
    assert found == {str(path) for path in model_directories(document)}


def test_checkpoints_are_made_once_for_a_shape(tmp_path, monkeypatch):
    base, tunes = benchmark.checkpoints(tmp_path, "tiny")
    before = (base / "model.safetensors").stat().st_mtime_ns
    benchmark.checkpoints(tmp_path, "tiny")
    assert (base / "model.safetensors").stat().st_mtime_ns == before
    monkeypatch.setitem(SHAPES, "tiny", replace(SHAPES["tiny"], shard_bytes=1))
    benchmark.checkpoints(tmp_path, "tiny")
    assert (base / "model.safetensors").stat().st_mtime_ns > before
    benchmark.clean([base, *tunes])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("clean", [False, True])
def test_a_run_measures_and_writes_its_results(tmp_path, clean):
    given = ["--work", tmp_path, "--shape", "tiny", "--merges", "passthrough"]
    given += ["--clean", "--device", "cpu", "--vram", "1GiB", "--warm"] if clean else []
    if can_make_groups():
        given += ["--memory-limit", "512MiB"]
    # In a process of its own: what the kernel counts of a child includes what its parent had.
    bench = subprocess.run(
        [sys.executable, benchmark.ROOT / "scripts" / "run", "compare", *given],
        capture_output=True,
        text=True,
        check=False,
    )
    assert bench.returncode == 0, bench.stderr
    document = json.loads((tmp_path / "bench.json").read_text())
    (row,) = document["merges"]
    assert row["failures"] == []
    assert row["predicted_write_bytes"] > 100_000
    assert row["write_bytes"] >= row["predicted_write_bytes"]
    assert 0 < row["peak_bytes"] < 512 << 20
    if can_make_groups():
        assert 0 < row["group_peak_bytes"] <= 512 << 20
    assert not (tmp_path / "merged").exists()
    assert (tmp_path / "tiny-tune1").exists() is not clean
    assert not (tmp_path / "tiny-base").exists()  # no merge needed it
    assert bench.stdout.splitlines()[1].startswith("passthrough")


def test_an_unknown_merge_is_an_error_in_one_line(tmp_path, capsys):
    given = ["--work", str(tmp_path)]
    assert benchmark.main([*given, "--merges", "nothing"]) == 1
    assert "no merge method 'nothing'" in capsys.readouterr().err
    assert benchmark.main([*given, "--mergekit", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_time_and_memory_of_a_process_are_measured():
    result = run(
        [
            sys.executable,
            "-c",
            "x = bytearray(b'1') * (400 << 20); print(len(x)); raise SystemExit(3)",
        ]
    )
    assert (result.status, result.output.strip()) == (3, str(400 << 20))
    assert result.peak_bytes > 400 << 20
    assert result.group is None


@pytest.mark.skipif(not can_make_groups(), reason="needs permission to make memory cgroups")
def test_a_memory_group_limits_its_process_and_is_removed():
    with MemoryGroup(64 << 20) as group:
        small = group.command([sys.executable, "-c", "bytes(8 << 20)"])
        assert subprocess.run(small, check=False).returncode == 0
        assert 0 < group.usage().peak_bytes <= 64 << 20
        path: Path = group.path
        assert path.is_dir()
    assert not path.exists()
    large = run([sys.executable, "-c", "x = bytearray(b'1') * (200 << 20)"], limit=64 << 20)
    assert large.status == -9
    assert large.group is not None
    assert large.group.killed == 1
