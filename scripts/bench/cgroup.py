"""A memory cgroup of fixed size; its limit includes the page cache."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class GroupUsage:
    """Counters of the kernel: peak bytes, page cache included; how often the limit was hit, so that
    memory had to be reclaimed; processes killed at the limit.
    """

    peak_bytes: int
    limit_hits: int
    killed: int


class MemoryGroup:
    """A new memory cgroup (version 1 or 2) of ``limit`` bytes, removed at the end of the context.

    Raises:
        OSError: memory cgroups are missing, or there is no permission to create one.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._first = (_V1 / "memory.limit_in_bytes").exists()
        parent = _V1 if self._first else _V2
        self.path = parent / f"mergeloom-{os.getpid()}-{time.monotonic_ns()}"

    def __enter__(self) -> MemoryGroup:
        if not self._first:
            controllers = _V2 / "cgroup.subtree_control"
            if "memory" not in controllers.read_text().split():
                controllers.write_text("+memory")
        self.path.mkdir()
        try:
            self._file("limit_in_bytes", "max").write_text(str(self.limit))
            swap = self.path / ("memory.swappiness" if self._first else "memory.swap.max")
            if swap.exists():
                swap.write_text("0")
        except OSError:
            self.path.rmdir()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for _ in range(50):
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError:  # the last process has not ended completely
                time.sleep(0.1)
            else:
                return

    def command(self, command: Sequence[str]) -> list[str]:
        """A command that enters the cgroup and then executes ``command``."""
        entering = f"echo $$ >'{self.path}/cgroup.procs' && exec \"$@\""
        return ["/bin/sh", "-c", entering, "sh", *command]

    def usage(self) -> GroupUsage:
        """Current values of the counters."""
        if self._first:
            return GroupUsage(
                int(self._file("max_usage_in_bytes").read_text()),
                int(self._file("failcnt").read_text()),
                self._counters("memory.oom_control").get("oom_kill", 0),
            )
        events = self._counters("memory.events")
        peak = self.path / "memory.peak"
        now = (peak if peak.exists() else self.path / "memory.current").read_text()
        return GroupUsage(int(now), events.get("max", 0), events.get("oom_kill", 0))

    def _file(self, first: str, second: str = "") -> Path:
        return self.path / f"memory.{first if self._first else second}"

    def _counters(self, name: str) -> dict[str, int]:
        pairs = (line.split() for line in (self.path / name).read_text().splitlines())
        return {key: int(value) for key, value in pairs}
