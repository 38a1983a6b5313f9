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
from mergeloom.engine.hardware.rates import Sample
from mergeloom.report.terminal.console import text_of
from mergeloom.report.terminal.plan import render_plan
from tests.planners.support import llamas

TIES = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [{"model": name, "parameters": {"weight": 1, "density": 0.5}} for name in "ab"],
    "dtype": "bfloat16",
}
GPU = Accelerator("cuda:0", "A Fast Card", 1000 * MIB, 2e10, 50.0)
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
    assert f"computes     {count} merges on cpu: the CPU keeps up with storage" in shown(planned)
    (placed,) = planned.document()["placement"]
    reason = "the CPU keeps up with storage"
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


def test_a_plan_shows_the_rates_it_used(plan: Planned) -> None:
    assumed = "assumed: storage 3 GB/s, cpu 1 x, cuda:0 50 x, its bus 20 GB/s"
    assert assumed in shown(plan())
    machine.remember_rates({"storage": Sample(1e9), f"device speed: {GPU.title}": Sample(25.0)})
    planned = plan()
    (line,) = [line for line in shown(planned).splitlines() if "rates" in line]
    assert "measured: storage 1 GB/s, cuda:0 25 x; assumed: cpu 1 x, its bus" in line
    document = planned.document()
    assert document["rates"]["storage_bytes_per_second"] == 1e9
    assert document["rates"]["storage_measured"]
    assert not document["rates"]["cpu_measured"]
    first, second = document["devices"]
    assert (first["speed"], first["speed_measured"]) == (25.0, True)
    assert (second["speed"], second["bus_measured"]) == (50.0, False)
    assert "rates" not in shown(plan(device="cpu"))


def test_wrong_devices_and_sizes_are_refused(plan: Planned) -> None:
    with pytest.raises(DeviceError, match=r"--device 'cuda:5' is not available.*cuda:0, cuda:1"):
        plan(device="cuda:5")
    with pytest.raises(LoomError, match="'much' is not a size"):
        plan(device="cuda", vram="much")
