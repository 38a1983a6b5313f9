"""How fast this machine is: what runs have measured, and what is assumed until they have.

A finished run leaves a `Sample` of each rate that it could measure; the next plan decides by
`Rates`. Everything here is decision and record, without I/O; `engine.hardware.profile` keeps it.

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
from dataclasses import dataclass, field, replace
from itertools import accumulate

from mergeloom.engine.hardware.accelerators import Accelerator

STORAGE_RATE = 3e9
"""Bytes a second that storage is assumed to give and take."""

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
"""Seconds of work below which nothing is measured: beginning and end would be most of it."""
_LEAST_BYTES = 256 << 20
_REALLY_STORED = 0.9
"""Share of the bytes that must have come from storage itself: a page cache says nothing of it."""
_WAITED_FOR = 0.8
"""Share of the time in which storage is busy where a run waits for it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One rate as one run has measured it; with ``at_least`` it may be higher."""

    value: float
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates that were measured, by name; what was not is assumed."""

    measured: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def of_record(found: object) -> Rates:
        """The rates that a record of them holds; what means nothing in it is left out."""
        if not isinstance(found, dict):
            return Rates()
        good = {name: float(rate) for name, rate in found.items() if _is_plausible(name, rate)}
        return Rates(dict(list(good.items())[-_MOST:]))

    @property
    def storage(self) -> float:
        """Bytes a second, read and written together."""
        return self.measured.get(_STORAGE, STORAGE_RATE)

    @property
    def knows_storage(self) -> bool:
        return _STORAGE in self.measured

    def cpu(self, compiled: bool) -> float:
        """Time that one core takes over the cost that kernels state, by machine code or not."""
        # A core that is slow at one is slow at the other.
        own, other = (_COMPILED, _CPU) if compiled else (_CPU, _COMPILED)
        return self.measured.get(own, self.measured.get(other, 1.0))

    @property
    def knows_cpu(self) -> bool:
        return _CPU in self.measured or _COMPILED in self.measured

    def of(self, device: Accelerator) -> Accelerator:
        """``device`` with the rates that were measured of it, or of another of its model."""
        speed = self.measured.get(_SPEED + device.title, device.speed)
        bus_rate = self.measured.get(_BUS + device.title, device.bus_rate)
        return replace(device, speed=speed, bus_rate=bus_rate)

    def knows_speed(self, device: Accelerator) -> bool:
        return _SPEED + device.title in self.measured

    def knows_bus(self, device: Accelerator) -> bool:
        return _BUS + device.title in self.measured

    def learnt(self, samples: Mapping[str, Sample]) -> Rates:
        """The rates after a run that has measured ``samples``.

        A rate goes half of the way to the new sample, as factors go: one odd run (a busy machine,
        another disk) moves it little for long, and after a few usual ones it is where it belongs.
        The first sample is taken as it is, for what it replaces is a guess.
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
"""Nothing is measured yet."""


def _is_plausible(name: object, rate: object) -> bool:
    if not isinstance(name, str) or len(name) > _LONGEST_NAME:
        return False
    if isinstance(rate, bool) or not isinstance(rate, (int, float)):
        return False
    kind = next((kind for kind in (_SPEED, _BUS) if name.startswith(kind)), name)
    low, high = _PLAUSIBLE.get(kind, (math.inf, -math.inf))
    return low <= rate <= high


class Busy:
    """Seconds during which at least one of several threads was inside."""

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
    """What a run measures of processors; its methods are called by one thread at a time."""

    def __init__(self) -> None:
        self._merges: dict[str, list[tuple[float, float]]] = {}
        self._bus: dict[str, tuple[int, float]] = {}

    def on_cpu(self, stated: float, seconds: float, compiled: bool) -> None:
        """A merge took a core ``seconds``; its kernels' cost says ``stated``."""
        self._add(_COMPILED if compiled else _CPU, stated, seconds)

    def on_device(self, device: Accelerator, stated: float, seconds: float) -> None:
        """The same on a device, where ``seconds`` are NaN if it does not tell."""
        self._add(_SPEED + device.title, stated, seconds)

    def over_bus(self, device: Accelerator, nbytes: int, seconds: float) -> None:
        """``nbytes`` went to a device."""
        before, spent = self._bus.get(device.title, (0, 0.0))
        self._bus[device.title] = before + nbytes, spent + seconds

    def samples(self) -> dict[str, Sample]:
        """What was measured for long enough to mean anything."""
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
    """Measured over stated seconds of the merge in the middle, weighted by their stated seconds.

    The first merges of a run touch memory and libraries first, which a mean would count in.
    """
    factors = sorted((seconds / stated, stated) for stated, seconds in merges)
    passed = list(accumulate(stated for _, stated in factors))
    return factors[bisect_left(passed, passed[-1] / 2)][0]


def storage_samples(moved: int, stored: int | None, busy: float, share: float) -> dict[str, Sample]:
    """The rate of storage from one run.

    ``moved`` bytes were read and written, of which the kernel saw ``stored`` going from and to
    storage (``None`` if it does not tell); for ``busy`` seconds any request was under way, which
    is a ``share`` of the time since tiles are computed. A run that waits for its processors has
    fewer requests under way, and only shows that storage is at least as fast.
    """
    if stored is None or stored < _REALLY_STORED * moved:
        return {}
    if busy < _LEAST_SECONDS or moved < _LEAST_BYTES:
        return {}
    return {_STORAGE: Sample(moved / busy, at_least=share < _WAITED_FOR)}
