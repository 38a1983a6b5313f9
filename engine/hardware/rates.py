"""Speed of this machine: measured by earlier runs, or assumed.

A finished run yields a `Sample` of each rate it could measure; the next plan uses `Rates`. This
module does no I/O; `engine.hardware.profile` stores the rates.

    rate       unit                       measured from
    storage    bytes a second             bytes moved / time in which any request was under way
    CPU        measured / stated cost     worker's seconds of a merge / what its kernels' cost says
    device     cores of the stated cost   what the kernels' cost says / seconds of its queue
    bus        bytes a second             bytes uploaded / seconds of its queue
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from itertools import accumulate

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.hardware.accelerators import Accelerator

STORAGE_RATE = 3e9
"""Assumed storage rate in bytes per second."""

_STORAGE, _CPU, _COMPILED = "storage", "cpu", "cpu compiled"
_SPEED, _BUS = "device speed: ", "device bus: "

_PLAUSIBLE = {
    _STORAGE: (1e6, 1e12),
    _CPU: (1e-2, 1e2),
    _COMPILED: (1e-2, 1e2),
    _SPEED: (1e-2, 1e5),
    _BUS: (1e6, 1e13),
}
_MOST = 64
_LONGEST_NAME = 200

_LEAST_SECONDS = 1.0
"""Minimum seconds of work for a measurement; below, start and end effects dominate."""
_LEAST_BYTES = 256 << 20
_REALLY_STORED = 0.9
"""Minimum share of bytes that came from storage, not from the page cache."""
_WAITED_FOR = 0.8
"""Share of time that storage is busy in a run limited by storage."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One rate measured by one run; with ``at_least`` it is a lower bound."""

    value: float
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured rates by name; others are assumed."""

    measured: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def of_record(found: object) -> Rates:
        """The rates in a stored record; invalid entries are ignored."""
        if not isinstance(found, dict):
            return Rates()
        good = {name: float(rate) for name, rate in found.items() if _is_plausible(name, rate)}
        return Rates(dict(list(good.items())[-_MOST:]))

    @property
    def storage(self) -> float:
        """Storage rate in bytes per second, read and written together."""
        return self.measured.get(_STORAGE, STORAGE_RATE)

    @property
    def knows_storage(self) -> bool:
        return _STORAGE in self.measured

    def cpu(self, compiled: bool) -> float:
        """Ratio of a core's time to the kernels' stated cost, for machine code or torch."""
        # A core that is slow with one is slow with the other.
        own, other = (_COMPILED, _CPU) if compiled else (_CPU, _COMPILED)
        return self.measured.get(own, self.measured.get(other, 1.0))

    @property
    def knows_cpu(self) -> bool:
        return _CPU in self.measured or _COMPILED in self.measured

    def of(self, device: Accelerator) -> Accelerator:
        """``device`` with the rates measured for its model."""
        speed = self.measured.get(_SPEED + device.title, device.speed)
        bus_rate = self.measured.get(_BUS + device.title, device.bus_rate)
        return replace(device, speed=speed, bus_rate=bus_rate)

    def knows_speed(self, device: Accelerator) -> bool:
        return _SPEED + device.title in self.measured

    def knows_bus(self, device: Accelerator) -> bool:
        return _BUS + device.title in self.measured

    def learnt(self, samples: Mapping[str, Sample]) -> Rates:
        """The rates updated by the ``samples`` of a run.

        A rate moves half of the way to the new sample on a logarithmic scale, so that an outlier (a
        busy machine, another disk) has little lasting effect. The first sample is used as is, since
        it replaces an assumption.
        """
        found = dict(self.measured)
        for name, sample in samples.items():
            if not _is_plausible(name, sample.value):
                continue
            if sample.at_least and sample.value <= found.get(name, STORAGE_RATE):
                continue
            old = found.pop(name, sample.value)
            found[name] = math.sqrt(old * sample.value)
        return Rates(dict(list(found.items())[-_MOST:]))


ASSUMED = Rates()
"""Rates before any measurement."""


def _is_plausible(name: object, rate: object) -> bool:
    if not isinstance(name, str) or len(name) > _LONGEST_NAME:
        return False
    if isinstance(rate, bool) or not isinstance(rate, (int, float)):
        return False
    kind = next((kind for kind in (_SPEED, _BUS) if name.startswith(kind)), name)
    low, high = _PLAUSIBLE.get(kind, (math.inf, -math.inf))
    return low <= rate <= high


class Busy:
    """Seconds during which at least one thread was inside the context."""

    def __init__(self) -> None:
        self._before = 0.0
        self._lock = threading.Lock()
        self._inside = 0
        self._since = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._since = time.perf_counter()
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before += time.perf_counter() - self._since

    @property
    def seconds(self) -> float:
        with self._lock:
            now = time.perf_counter() - self._since if self._inside else 0.0
            return self._before + now


class Stopwatch:
    """Processor measurements of a run; its methods are called by one thread at a time."""

    def __init__(self) -> None:
        self._merges: dict[str, list[tuple[float, float]]] = {}
        self._bus: dict[str, tuple[int, float]] = {}

    def on_cpu(self, stated: float, seconds: float, compiled: bool) -> None:
        """Record a merge that took ``seconds`` of a core, with a stated cost of ``stated``."""
        self._add(_COMPILED if compiled else _CPU, stated, seconds)

    def on_device(self, device: Accelerator, stated: float, seconds: float) -> None:
        """The same for a device; ``seconds`` is NaN if unknown."""
        self._add(_SPEED + device.title, stated, seconds)

    def over_bus(self, device: Accelerator, nbytes: int, seconds: float) -> None:
        """Record ``nbytes`` uploaded to a device."""
        before, spent = self._bus.get(device.title, (0, 0.0))
        self._bus[device.title] = before + nbytes, spent + seconds

    def samples(self) -> dict[str, Sample]:
        """The rates that were measured for long enough."""
        return {name: Sample(value) for name, value in self._values()}

    def _add(self, name: str, stated: float, seconds: float) -> None:
        if math.isfinite(seconds) and seconds > 0 and stated > 0:
            self._merges.setdefault(name, []).append((stated, seconds))

    def _values(self) -> Iterator[tuple[str, float]]:
        for name, merges in self._merges.items():
            if sum(seconds for _, seconds in merges) >= _LEAST_SECONDS:
                factor = _median_factor(merges)
                yield name, 1 / factor if name.startswith(_SPEED) else factor
        for title, (nbytes, seconds) in self._bus.items():
            if seconds >= _LEAST_SECONDS:  # false for NaN
                yield _BUS + title, nbytes / seconds


def _median_factor(merges: list[tuple[float, float]]) -> float:
    """Weighted median of measured / stated seconds over merges, weighted by stated seconds.

    A median ignores the first merges of a run, which load libraries and touch memory.
    """
    factors = sorted((seconds / stated, stated) for stated, seconds in merges)
    passed = list(accumulate(stated for _, stated in factors))
    return factors[bisect_left(passed, passed[-1] / 2)][0]


def storage_samples(moved: int, stored: int | None, busy: float, share: float) -> dict[str, Sample]:
    """The storage rate from one run.

    ``moved`` is the number of bytes read and written, ``stored`` how many of them went from and to
    storage (``None`` if unknown); ``busy`` is the time in seconds with any request in flight, and
    ``share`` its share of the computing time. A run limited by processors only gives a lower bound.
    """
    if stored is None or stored < _REALLY_STORED * moved:
        return {}
    if busy < _LEAST_SECONDS or moved < _LEAST_BYTES:
        return {}
    return {_STORAGE: Sample(moved / busy, at_least=share < _WAITED_FOR)}
