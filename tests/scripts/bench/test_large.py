"""Merges on a compressing volume: what they report, when they stop, that nothing stays."""

import json
import os
import shutil
import sys

import pytest

from scripts.bench import large
from scripts.bench.measure import StoppedError, run
from scripts.fixtures.volume import CompressedVolume


def can_mount(directory) -> bool:
    try:
        with CompressedVolume(directory, 1 << 30):
            return True
    except OSError:
        return False


@pytest.fixture
def work(tmp_path, monkeypatch):
    if os.geteuid() != 0 or shutil.which("mkfs.btrfs") is None or not can_mount(tmp_path):
        pytest.skip("needs root, loop devices and btrfs-progs")
    monkeypatch.setattr(large, "cool", lambda files: "not at all")
    return tmp_path / "work"


def test_a_run_merges_reports_and_removes_everything(work, tmp_path, capsys):
    report = tmp_path / "report.json"
    given = ["--work", str(work), "--shape", "tiny", "--runs", "passthrough:512MiB"]
    assert large.main([*given, "--json", str(report)]) == 0
    assert "passthrough" in capsys.readouterr().out
    (result,) = json.loads(report.read_text())
    assert 0 < result["group_peak_bytes"] <= 512 << 20
    assert result["group_killed"] == 0
    assert list(work.iterdir()) == []


def test_a_run_stops_when_the_disk_runs_low_and_removes_everything(work, capsys):
    given = ["--work", str(work), "--shape", "tiny", "--runs", "passthrough:512MiB"]
    assert large.main([*given, "--reserve", "1000TB"]) == 1
    assert "of the disk are free" in capsys.readouterr().err
    assert list(work.iterdir()) == []


def test_a_check_stops_a_run():
    reasons = iter([None, "enough"])
    with pytest.raises(StoppedError, match="enough"):
        run([sys.executable, "-c", "import time; time.sleep(60)"], check=lambda: next(reasons))


def test_wrong_usage_is_one_line(tmp_path, capsys):
    assert large.main(["--work", str(tmp_path), "--runs", "linear"]) == 1
    assert capsys.readouterr().err == "large: 'linear' is not a run: write METHOD:SIZE\n"
