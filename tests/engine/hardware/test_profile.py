"""What is remembered from run to run, and what is believed of a file with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mergeloom.engine.base.units import MIB
from mergeloom.engine.hardware import process as machine
from mergeloom.engine.hardware import profile


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the profile, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mergeloom" / "profile.json"


def test_different_things_are_remembered_beside_each_other(cache: Path) -> None:
    assert machine.remembered_ratios() == ()
    machine.remember_runtime_bytes(300 * MIB)
    machine.remember_ratio(20.0, 10.0)
    assert machine.remembered_ratios() == (2.0,)
    assert machine.runtime_bytes() >= 300 * MIB
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"[" * 60_000,
        b"[1, 2]",
        b'{"ratios": 3, "runtime_bytes": []}',
        b'{"ratios": [1e999, -1, "x", true]}',
        b'{"ratios": [' + b"9" * 10_000 + b"]}",
        b'{"ratios": [2.0], "more": "' + b"x" * 100_000 + b'"}',
        json.dumps({"more": "x" * 65_000}).encode(),
    ],
)
def test_garbage_is_no_matter_and_is_replaced(cache: Path, content: bytes) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    assert machine.remembered_ratios() == ()
    assert machine.runtime_bytes() > 0
    machine.remember_ratio(20.0, 10.0)
    assert machine.remembered_ratios() == (2.0,)
    assert cache.stat().st_size <= 64 << 10


def test_a_place_that_cannot_be_written_is_no_matter(cache: Path) -> None:
    cache.mkdir(parents=True)
    machine.remember_ratio(20.0, 10.0)
    assert machine.remembered_ratios() == ()


def test_how_estimates_of_the_latest_runs_came_true_is_remembered(cache: Path) -> None:
    machine.remember_ratio(0.5, 10.0)  # too short to tell anything of others
    machine.remember_ratio(10.0, 0.5)
    assert machine.remembered_ratios() == ()
    for seconds in range(10, 30):
        machine.remember_ratio(float(seconds), 10.0)
    assert machine.remembered_ratios() == tuple(n / 10 for n in range(22, 30))
    profile.save_section("ratios", [1.0, "x", True, -3.0, 1e9])  # what others wrote
    assert machine.remembered_ratios() == (1.0,)
