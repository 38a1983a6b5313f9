"""Statistics are combined and finished without the executor's lock, which every thread needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import pytest

from mergeloom.engine import job as jobs
from mergeloom.engine.base.dtypes import F32
from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.graph import Merge
from mergeloom.engine.graph.kernel import GrainView, Kernel, Statistic
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.engine.job import Options
from mergeloom.engine.run.executor import Executor
from tests.engine.kernels import Moment
from tests.engine.support import GraphMaker, job, spec


@dataclass
class Watch:
    """The lock of the executor that runs, and whether it was free in each step."""

    locks: list[Lock] = field(default_factory=list)
    free: dict[str, list[bool]] = field(default_factory=dict)

    def look(self, step: str) -> None:
        (lock,) = self.locks
        found = lock.acquire(timeout=2.0)  # another thread has it for a moment only
        if found:
            lock.release()
        self.free.setdefault(step, []).append(found)


class Watched(Moment):
    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def combine(self, into: GrainSums, other: GrainSums) -> None:
        self._watch.look("combine")
        super().combine(into, other)

    def finalize(self, total: GrainSums, earlier: Sequence[Any]) -> float:
        self._watch.look("finalize")
        return super().finalize(total, earlier)


@dataclass(frozen=True)
class Scaled(Kernel):
    watch: Watch = field(hash=False, compare=False)

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        return (Watched(self.watch),)

    def apply(self, grain: GrainView, out: Any, statistics: Any, before: Any) -> None:
        out.copy_(grain.inputs[0] / (1.0 + statistics[0]))


def test_combining_statistics_does_not_hold_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch()

    class Known(Executor):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            watch.locks.append(self._lock)

    monkeypatch.setattr(jobs, "Executor", Known)
    (tmp_path / "in").mkdir()
    maker = GraphMaker(tmp_path / "in")
    (load,) = maker.loads(F32, [(1600, 2000)])  # longer than one tile
    merge: Merge = maker.builder.merge([load], Scaled(watch), "scaled")
    graph = maker.graph({"scaled": (merge, F32)})
    jobs.run(job(graph), tmp_path / "out", Options(machine=spec(2, 300 * MIB, 0)))
    assert watch.free == {"combine": [True], "finalize": [True]}
