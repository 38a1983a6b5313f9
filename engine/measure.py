"""Compute statistics of merges without an output."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import Graph, Merge, OutputFile, Write
from mergeloom.engine.hardware import process
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.plan.schedule import Schedule, schedule
from mergeloom.engine.run.building import build_missing
from mergeloom.engine.run.executor import Executor, Writer
from mergeloom.engine.run.loading import source_readers
from mergeloom.engine.run.progress import Progress
from mergeloom.engine.storage.source import ReadOptions


@dataclass(frozen=True)
class Measurement:
    """A scheduled graph that only computes statistics."""

    graph: Graph
    schedule: Schedule

    @classmethod
    def of(cls, graph: Graph, budget: int | None, machine: Machine) -> Measurement:
        """Schedule ``graph`` within ``budget`` bytes, on the CPU.

        Raises:
            BudgetError: the budget is too small.
        """
        return cls(graph, schedule(graph, budget, replace(machine, devices=())))

    def run(
        self,
        options: ReadOptions,
        poll: Callable[[Progress], None] | None = None,
        building: Callable[[frozenset[str]], None] | None = None,
    ) -> Mapping[Merge, tuple[Any, ...]]:
        """The results of the statistics of each measured merge, in pass order.

        Raises:
            RunError: reading or arithmetic failed.
            KeyboardInterrupt: interrupted.
        """
        process.bound_heap()
        plan = self.schedule
        build_missing(plan, building)
        with contextlib.ExitStack() as opened:
            readers = source_readers(
                plan,
                lambda source: opened.enter_context(contextlib.closing(source.open(options))),
            )
            executor = Executor(plan, readers, _NoSink())
            executor.run(poll)
            for reader in readers.values():
                reader.check_unchanged()
        return executor.measured


class _NoSink:
    """The sink of a run that writes nothing."""

    def writer(self, file: OutputFile) -> Writer:
        raise AssertionError(f"a run that only measures writes '{file.name}'")

    def completed(
        self, write: Write, digest: str, block_bytes: int, error: float | None = None
    ) -> None:
        raise AssertionError(f"a run that only measures writes '{write.name}'")
