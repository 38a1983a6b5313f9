"""Plans on a machine with devices, which there need not be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import mergeloom
from mergeloom.engine.base.errors import DeviceError, LoomError
from mergeloom.engine.base.units import MIB
from mergeloom.engine.hardware import process as machine
from mergeloom.engine.hardware.accelerators import Accelerator
from mergeloom.report.terminal.console import text_of
from mergeloom.report.terminal.plan import render_plan
from tests.planners.support import llamas

TIES = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [{"model": name, "parameters": {"weight": 1, "density": 0.5}} for name in "ab"],
    "dtype": "bfloat16",
}
GPU = Accelerator("cuda:0", "A Fast Card", 1000 * MIB)
Planned = Callable[..., mergeloom.PlannedMerge]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planned:
    llamas(tmp_path, ("base", "a", "b"))
    other = replace(GPU, name="cuda:1", title="Another")
    monkeypatch.setattr(machine, "devices", lambda: (GPU, other))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # nothing is measured yet
    return lambda **options: mergeloom.plan(TIES, search=[tmp_path], **options)


def shown(planned: mergeloom.PlannedMerge) -> str:
    return text_of(render_plan(planned.report))


def test_small_merges_stay_on_the_cpu(plan: Planned) -> None:
    planned = plan()
    count = len(planned.plan.graph.writes)
    reason = "starting a device would take longer than it saves"
    assert f"computes     {count} merges on cpu: {reason}" in shown(planned)
    (placed,) = planned.document()["placement"]
    assert placed == {"device": "cpu", "reason": reason, "merges": count}


def test_merges_are_shared_by_the_requested_devices(plan: Planned) -> None:
    planned = plan(device="cuda", vram="500MiB")
    text = shown(planned)
    assert "on cuda:0 (A Fast Card, 500 MiB at most): asked for by --device" in text
    assert "on cuda:1 (Another, 500 MiB at most): asked for by --device" in text
    document = planned.document()
    assert [device["name"] for device in document["devices"]] == ["cuda:0", "cuda:1"]
    assert {device["memory_bytes"] for device in document["devices"]} == {500 * MIB}
    assert sum(p["merges"] for p in document["placement"]) == len(planned.plan.graph.writes)


def test_devices_do_not_enter_the_fingerprint_and_cost_memory(plan: Planned) -> None:
    there, here = plan(device="cuda:1", ram="8GiB"), plan(device="cpu", ram="8GiB")
    assert there.plan.fingerprint == here.plan.fingerprint
    assert here.document()["devices"] == []
    assert "computes" not in shown(here)
    more = there.schedule.overhead_bytes - here.schedule.overhead_bytes
    assert more >= GPU.host_bytes


def test_estimated_time_is_scaled_by_how_earlier_estimates_came_true(plan: Planned) -> None:
    planned = plan()
    first = planned.report.time
    assert "(limited by arithmetic, its speed is assumed)" in shown(planned)
    assert first.assumed_storage_rate == 3e9
    assert first.low_seconds is None
    for seconds in (5.0, 20.0, 10.0):
        machine.remember_ratio(seconds, 5.0)
    found = plan().report.time
    assert (found.low_seconds, found.high_seconds) == (first.seconds, 4 * first.seconds)
    assert found.seconds == 2 * first.seconds
    assert "judging by earlier merges here; limited by arithmetic)" in shown(plan())


def test_wrong_devices_and_sizes_are_refused(plan: Planned) -> None:
    with pytest.raises(DeviceError, match=r"device='cuda:5' is not available.*cuda:0, cuda:1"):
        plan(device="cuda:5")
    with pytest.raises(LoomError, match="'much' is not a size"):
        plan(device="cuda", vram="much")
