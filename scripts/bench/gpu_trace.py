"""Device activity from a trace of the torch profiler: launches, bytes moved, overlap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MICRO = 1e-6
Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Traffic:
    """One run on a device, times in seconds.

    ``launches`` counts kernels, ``up_bytes`` and ``down_bytes`` what was copied to it and from it.
    The times are those in which any kernel ran, any copy each way; ``busy_seconds`` those in which
    anything did, so that the sum of the three above it is what went on at once.
    """

    launches: int
    up_bytes: int
    down_bytes: int
    kernel_seconds: float
    up_seconds: float
    down_seconds: float
    busy_seconds: float
    whole_seconds: float
    kernels: Mapping[str, tuple[int, float]]
    """Launches and seconds by kernel."""

    @property
    def overlap(self) -> float | None:
        """Share of the time of copies and kernels that overlapped with others."""
        total = self.kernel_seconds + self.up_seconds + self.down_seconds
        return 1.0 - self.busy_seconds / total if total else None


def traffic(events: Iterable[Mapping[str, Any]]) -> Traffic:
    """The activity of the device in a trace (Chrome's trace format)."""
    kernels: list[Span] = []
    by_name: dict[str, tuple[int, float]] = {}
    copies: dict[str, list[Span]] = {"up": [], "down": []}
    moved = {"up": 0, "down": 0}
    for event in events:
        if event.get("ph") != "X":
            continue
        span = float(event["ts"]), float(event["ts"]) + float(event.get("dur", 0.0))
        kind, name = event.get("cat"), str(event.get("name", ""))
        if kind == "kernel":
            kernels.append(span)
            count, seconds = by_name.get(name, (0, 0.0))
            by_name[name] = count + 1, seconds + (span[1] - span[0]) * _MICRO
        elif kind == "gpu_memcpy":
            way = "up" if "HtoD" in name else "down" if "DtoH" in name else None
            if way is not None:
                copies[way].append(span)
                moved[way] += int(event.get("args", {}).get("bytes", 0))
    everything = [*kernels, *copies["up"], *copies["down"]]
    ends = [end for _, end in everything]
    return Traffic(
        launches=len(kernels),
        up_bytes=moved["up"],
        down_bytes=moved["down"],
        kernel_seconds=covered(kernels) * _MICRO,
        up_seconds=covered(copies["up"]) * _MICRO,
        down_seconds=covered(copies["down"]) * _MICRO,
        busy_seconds=covered(everything) * _MICRO,
        whole_seconds=(max(ends) - min(s for s, _ in everything)) * _MICRO if ends else 0.0,
        kernels=by_name,
    )


def covered(spans: Sequence[Span]) -> float:
    """The length of the union of the spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total
