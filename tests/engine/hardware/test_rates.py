"""Rates: what a run measures, what of it counts, and what is believed of a file with them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeloom.engine import job as jobs
from mergeloom.engine.base.units import MIB
from mergeloom.engine.hardware import process as machine
from mergeloom.engine.hardware import profile, rates
from mergeloom.engine.hardware.accelerators import Accelerator
from mergeloom.engine.hardware.rates import ASSUMED, Busy, Rates, Sample, Stopwatch, storage_samples
from mergeloom.engine.job import Options
from mergeloom.methods.ops.arithmetic import COMPILED, TORCH
from tests.engine.fake_device import accelerator
from tests.engine.run.test_device_worker import Opener
from tests.engine.support import Workshop, job, spec
from tests.engine.test_job import every_kind

GPU = Accelerator("cuda:0", "card", 8 << 30, 2e10, 50.0)
SPEED, BUS = "device speed: card", "device bus: card"
GIB = 1 << 30
LOOPS = profile.cache_directory() / "loops"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the profile, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mergeloom" / "profile.json"


@pytest.fixture
def machine_code(cache: Path) -> None:
    """The machine code that exists already, so that a run need not compile it."""
    cache.parent.mkdir(parents=True)
    (cache.parent / "loops").symlink_to(LOOPS, target_is_directory=True)


# --- what counts ----------------------------------------------------------------------------


def test_the_first_sample_replaces_the_guess_and_later_ones_go_half_way() -> None:
    once = ASSUMED.learnt({"storage": Sample(1e9)})
    assert (ASSUMED.storage, once.storage) == (3e9, 1e9)
    assert once.learnt({"storage": Sample(4e9)}).storage == pytest.approx(2e9)
    odd = once.learnt({"storage": Sample(1e11)})
    for _ in range(5):
        odd = odd.learnt({"storage": Sample(1e9)})
    assert odd.storage == pytest.approx(1e9, rel=0.1)


def test_a_lower_bound_only_raises() -> None:
    known = Rates({"storage": 1e9})
    assert known.learnt({"storage": Sample(0.5e9, at_least=True)}) == known
    assert known.learnt({"storage": Sample(4e9, at_least=True)}).storage == pytest.approx(2e9)
    assert ASSUMED.learnt({"storage": Sample(2e9, at_least=True)}) == ASSUMED


def test_the_rate_of_a_core_for_one_arithmetic_stands_in_for_the_other() -> None:
    assert [ASSUMED.cpu(compiled) for compiled in (False, True)] == [1.0, 1.0]
    assert [Rates({"cpu": 2.0}).cpu(compiled) for compiled in (False, True)] == [2.0, 2.0]
    both = Rates({"cpu": 2.0, "cpu compiled": 3.0})
    assert [both.cpu(compiled) for compiled in (False, True)] == [2.0, 3.0]


def test_devices_are_known_by_their_model() -> None:
    known = Rates({SPEED: 7.0, BUS: 5e9})
    there = known.of(GPU)
    assert (there.speed, there.bus_rate, there.name) == (7.0, 5e9, "cuda:0")
    other = Accelerator("cuda:1", "another", 8 << 30, 2e10, 50.0)
    assert known.of(other) == other
    assert (known.knows_speed(GPU), known.knows_bus(other)) == (True, False)


def test_the_devices_measured_last_are_kept() -> None:
    known = ASSUMED
    for number in range(200):
        known = known.learnt({f"device speed: {number}": Sample(2.0)})
    assert len(known.measured) <= 64
    assert "device speed: 199" in known.measured


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
NAMES = st.sampled_from(["storage", "cpu", "cpu compiled", SPEED, BUS]) | st.text()


@given(VALUES | st.dictionaries(NAMES, VALUES | st.just(10**400)))
def test_senseless_values_of_a_profile_are_ignored(found: object) -> None:
    known = Rates.of_record(found)
    there = known.of(GPU)
    for rate in (known.storage, known.cpu(True), there.speed, there.bus_rate):
        assert isinstance(rate, float)
        assert 0 < rate < 1e14
    assert Rates.of_record(known.measured) == known
    assert known.learnt({"cpu": Sample(math.nan), "more": Sample(1.0)}) == known


# --- what is measured -----------------------------------------------------------------------


def test_storage_is_measured_where_the_run_waits_for_it() -> None:
    (sample,) = storage_samples(4 * GIB, 4 * GIB, busy=2.0, share=0.95).values()
    assert sample == Sample(2 * GIB)
    (sample,) = storage_samples(4 * GIB, 4 * GIB, busy=2.0, share=0.1).values()
    assert sample == Sample(2 * GIB, at_least=True)


@pytest.mark.parametrize(
    ("moved", "stored", "busy"),
    [
        (4 * GIB, GIB, 2.0),  # from the page cache
        (4 * GIB, None, 2.0),
        (4 * GIB, 4 * GIB, 0.1),
        (MIB, MIB, 2.0),
        (0, 0, 0.0),
    ],
)
def test_runs_that_do_not_show_the_storage_rate_are_ignored(
    moved: int, stored: int | None, busy: float
) -> None:
    assert storage_samples(moved, stored, busy, share=1.0) == {}


def test_a_processor_is_measured_by_the_merge_in_the_middle() -> None:
    watch = Stopwatch()
    watch.on_cpu(0.1, 30.0, compiled=True)  # touches everything first
    for number in range(20):
        watch.on_cpu(0.2, 0.4 + 0.001 * number, compiled=True)
        watch.on_cpu(1e-7, 1e-3, compiled=True)  # a norm: all overhead
        watch.on_device(GPU, 10.0, 0.1)
        watch.over_bus(GPU, 2 * GIB, 0.2)
    found = watch.samples()
    assert found["cpu compiled"].value == pytest.approx(2.0, rel=0.05)
    assert found[SPEED].value == pytest.approx(100.0)
    assert found[BUS].value == pytest.approx(10 * GIB)
    assert "cpu" not in found


def test_too_short_a_run_measures_nothing() -> None:
    watch = Stopwatch()
    watch.on_cpu(0.1, 0.2, compiled=False)
    watch.on_device(GPU, 10.0, 0.2)
    watch.over_bus(GPU, GIB, 0.2)
    assert watch.samples() == {}


def test_a_device_without_timings_is_not_measured() -> None:
    watch = Stopwatch()
    for _ in range(9):
        watch.on_device(GPU, 10.0, math.nan)
        watch.over_bus(GPU, GIB, math.nan)
    assert watch.samples() == {}


def test_overlapping_requests_count_their_time_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(rates.time, "perf_counter", lambda: now)
    busy = Busy()
    with busy:
        now = 1.0
        with busy:
            now = 3.0
        now = 4.0
    now = 10.0
    with busy:
        now = 10.5
        assert busy.seconds == 4.5
    now = 11.0
    assert busy.seconds == 4.5


# --- the profile ----------------------------------------------------------------------------


def test_saving_rates_keeps_the_other_sections_of_the_profile(cache: Path) -> None:
    assert machine.remembered_rates() == ASSUMED
    machine.remember_runtime_bytes(300 * MIB)
    machine.remember_rates({"cpu": Sample(2.0)})
    machine.remember_rates({"storage": Sample(1e9)})
    assert machine.remembered_rates() == Rates({"cpu": 2.0, "storage": 1e9})
    assert machine.this_machine(COMPILED, TORCH, 2).rates == machine.remembered_rates()
    assert machine.runtime_bytes() >= 300 * MIB
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"[" * 60_000,
        b"[1, 2]",
        b'{"rates": 3, "runtime_bytes": []}',
        b'{"rates": {"cpu": 1e999, "storage": -1}}',
        b'{"rates": {"cpu": ' + b"9" * 10_000 + b"}}",
        b'{"rates": {"cpu": 2.0}, "more": "' + b"x" * 100_000 + b'"}',
        json.dumps({"more": "x" * 65_000}).encode(),
    ],
)
def test_a_profile_of_garbage_is_ignored_and_replaced(cache: Path, content: bytes) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    assert machine.remembered_rates() == ASSUMED
    assert machine.runtime_bytes() > 0
    machine.remember_rates({"cpu": Sample(2.0)})
    assert machine.remembered_rates() == Rates({"cpu": 2.0})
    assert cache.stat().st_size <= 64 << 10


def test_a_profile_that_cannot_be_written_is_no_error(cache: Path) -> None:
    cache.mkdir(parents=True)
    machine.remember_rates({"cpu": Sample(2.0)})
    assert machine.remembered_rates() == ASSUMED


def test_a_run_is_measured_on_every_processor(
    tmp_path: Path, machine_code: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "_LEAST_SECONDS", 1e-4)
    (tmp_path / "in").mkdir()
    graph = every_kind(Workshop(tmp_path / "in"), [(1000, 777), (2, 1 << 20)])
    here = spec(2, 300 * MIB, 0)
    jobs.run(job(graph), tmp_path / "cpu", Options(machine=here))
    assert "cpu" in machine.remembered_rates().measured
    device = accelerator(GIB)
    there = spec(2, 300 * MIB, 0, devices=(device,), forced=True)
    jobs.run(job(graph), tmp_path / "there", Options(machine=there, opener=Opener()))
    found = machine.remembered_rates()
    assert found.knows_speed(device)
    assert found.knows_bus(device)


def test_a_short_run_is_not_remembered(tmp_path: Path, machine_code: None) -> None:
    (tmp_path / "in").mkdir()
    graph = every_kind(Workshop(tmp_path / "in"), [(30, 70)])
    jobs.run(job(graph), tmp_path / "out", Options(machine=spec(2, 300 * MIB, 0)))
    assert profile.load_section("rates") is None


def test_ratios_of_time_to_estimate_are_kept_for_the_latest_runs(cache: Path) -> None:
    assert machine.remembered_ratios() == ()
    machine.remember_ratio(0.5, 10.0)  # too short to tell anything of others
    machine.remember_ratio(10.0, 0.5)
    assert machine.remembered_ratios() == ()
    for seconds in range(10, 30):
        machine.remember_ratio(float(seconds), 10.0)
    assert machine.remembered_ratios() == tuple(n / 10 for n in range(22, 30))
    profile.save_section("ratios", [1.0, "x", True, -3.0, 1e9])  # what others wrote
    assert machine.remembered_ratios() == (1.0,)
