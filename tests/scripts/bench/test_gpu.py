"""What is measured on a GPU: deadlines, traces, comparisons, tables, a run that is too short."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from pathlib import Path

import pytest

import mergeloom
from scripts.bench import gpu
from scripts.bench.deadline import Deadline, OutOfTimeError
from scripts.bench.gpu_process import compare
from scripts.bench.gpu_runs import Place, Result, digests, measured, merge_command
from scripts.bench.gpu_table import page, problems, table
from scripts.bench.gpu_trace import covered, traffic
from scripts.fixtures.checkpoints import make


def test_a_deadline_refuses_what_takes_too_long() -> None:
    deadline = Deadline(100)
    assert deadline.within(10) == 10
    assert 99 < deadline.within(1000, 50) <= 100
    with pytest.raises(OutOfTimeError, match=r"0 s are left, 4 s are needed"):
        Deadline(0).within(10, 4)


def test_a_trace_gives_launches_bytes_and_overlap() -> None:
    def event(kind: str, name: str, ts: float, dur: float, nbytes: int = 0) -> dict[str, object]:
        return {
            "ph": "X",
            "cat": kind,
            "name": name,
            "ts": ts,
            "dur": dur,
            "args": {"bytes": nbytes},
        }

    found = traffic(
        [
            {"ph": "M", "name": "process_name"},
            event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 0, 10, 100),
            event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 10, 10, 100),
            event("kernel", "vectorized", 5, 10),
            event("kernel", "reduce", 16, 4),
            event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 25, 5, 50),
            event("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 25, 50, 1000),
        ]
    )
    assert (found.launches, found.up_bytes, found.down_bytes) == (2, 200, 50)
    assert found.kernels["vectorized"] == (1, pytest.approx(10e-6))
    times = (found.kernel_seconds, found.up_seconds, found.down_seconds, found.busy_seconds)
    assert times == pytest.approx((14e-6, 20e-6, 5e-6, 25e-6))
    assert found.whole_seconds == pytest.approx(30e-6)
    assert found.overlap == pytest.approx(1 - 25 / 39)
    assert traffic([]).overlap is None
    assert covered([(0, 2), (1, 3), (5, 6)]) == 4


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base, and a copy of it."""
    work = tmp_path_factory.mktemp("gpu")
    make(work / "base", "tiny")
    config = {"merge_method": "passthrough", "models": [{"model": str(work / "base")}]}
    for name in ("one", "other"):
        mergeloom.merge(config, work / name)
    return work / "one", work / "other"


def test_outputs_are_compared_in_steps_between_numbers(outputs: tuple[Path, Path]) -> None:
    one, other = outputs
    assert compare(one, other)["most_steps"] == 0
    moved = other.parent / "moved"
    shutil.copytree(other, moved)
    (path,) = moved.glob("*.safetensors")
    manifest = moved / ".mergeloom" / "manifest.json"
    record = json.loads(manifest.read_text())
    tensor = record["tensors"][3]
    tensor["digest"] = "another"
    manifest.write_text(json.dumps(record))
    with open(path, "r+b") as file:
        file.seek(tensor["offset"])
        (bits,) = struct.unpack("<h", file.read(2))
        file.seek(tensor["offset"])
        file.write(struct.pack("<h", bits + 3))
    found = compare(one, moved)
    assert (found["most_steps"], found["differing"], found["where"]) == (3, 1, tensor["name"])
    assert found["beyond_one_step"] == 1
    assert digests(one) != digests(moved)


def test_the_table_has_a_line_for_each_merge_and_names_what_is_wrong() -> None:
    right, wrong = {"right": True, "what": "same bytes"}, {"right": False, "what": "OTHER BYTES"}
    results = [
        Result("1b", "page cache", "ties", "mergeloom", "all", 2.0, None, 3 << 30),
        Result("1b", "page cache", "ties", "mergeloom", "cpu", 4.0, more={"check": right}),
        Result("1b", "page cache", "ties", "mergekit", "all", 11.0),
        Result("1b", "page cache", "ties", "mergeloom", "512MiB", 3.0, more={"check": wrong}),
        Result("1b", "page cache", "slerp", "mergeloom", "all", wrong="out of time: 1 s"),
        Result("1b", "page cache", "slerp", "mergeloom", "cpu", wrong="status 1: no"),
    ]
    traced = {"launches": 7, "up_bytes": 1 << 30, "down_bytes": 0, "overlap": 0.5}
    lines = table(results, {"1b ties": traced}).splitlines()
    assert len(lines) == 4
    ties = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert ties[3:10] == ["2.0 s", "", "3.0 s", "4.0 s", "", "11.0 s", "5.5x"]
    assert ties[10:] == ["3.00 GiB", "7", "1.00 GiB", "0.00 GiB", "50%", "WRONG: OTHER BYTES"]
    assert "out of time" in lines[3]
    assert "failed" in lines[3]
    assert problems(results) == [
        "1b page cache slerp mergeloom all: out of time: 1 s",
        "1b page cache slerp mergeloom cpu: status 1: no",
    ]
    facts = {"cores": 2, "device": {"torch": "2.11", "pinned_up_bytes_per_second": 55e9}}
    kernels = {"elect": (100, 0.5), "round": (7, 1.0)}
    timed = {"kernels": kernels, "kernel_seconds": 1.5, "up_seconds": 0.2, "down_seconds": 0.1}
    profile = {"moments": {"merged": 4.4}, "functions": [["ops.py:1 launch", 9, 0.3, 0.4]]}
    looked_at = {"1b ties": {**traced, **timed}}, {"1b ties": profile}
    text = page(facts, results, *looked_at, ["prepared after 3 s"], emulated=True)
    assert "copies up 0.20 s, down 0.10 s: round 7 in 1.00 s, elect 100 in 0.50 s" in text
    assert "- 1b ties: merged 4.40 s; launching: ops.py:1 launch 0.30 s" in text
    assert text.startswith("A REHEARSAL WITHOUT A GPU")
    assert "mergekit --cuda" not in text
    for line in ("- cores: 2", "- pinned up: 55 GB/s", "- prepared after 3 s"):
        assert line in text.splitlines()


def test_a_partial_table_is_written_when_the_minutes_are_over(tmp_path: Path) -> None:
    given = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--minutes", "0.01"]
    assert gpu.main([*given, "--shape", "tiny", "--parts", "first,tests"]) == 0
    document = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert document["results"] == []
    early = [note.partition(",")[0] for note in document["notes"]]
    assert {"tests: ended early", "first: ended early"} <= set(early)
    assert (tmp_path / "out" / "gpu.md").read_text().startswith("| shape |")
    assert gpu.main([*given, "--parts", "all"]) == 2


def test_a_merge_on_the_device_without_hardware(tmp_path: Path, outputs: tuple[Path, Path]) -> None:
    (tmp_path / "cache").symlink_to(os.environ["XDG_CACHE_HOME"])  # machine code is there
    place = Place(tmp_path, Deadline(300), fake=1 << 30)
    base = str(outputs[0].parent / "base")
    config = tmp_path / "merge.yml"
    models = [{"model": base, "parameters": {"weight": weight}} for weight in (1, 3)]
    config.write_text(json.dumps({"merge_method": "linear", "models": models}))
    result = Result("tiny", "page cache", "linear", "mergeloom", "512MiB")
    command = merge_command(place, config, tmp_path / "out", result.budget)
    assert command[0] == sys.executable
    measured(place, result, command, [], tmp_path / "out")
    assert result.wrong is None
    assert {each["device"] for each in result.more["placement"]} == {"cuda:0"}
    assert digests(tmp_path / "out")
