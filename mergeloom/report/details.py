"""The details of a plan: every tensor with the provenance of its values, memory step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergeloom.planners.config.parameters import ResolvedValue
from mergeloom.planners.tensors import Contribution, TensorPlan
from mergeloom.report.detail_records import (
    DetailsReport,
    InputRow,
    LaneRow,
    MemoryStep,
    Sample,
    TensorRow,
    ValueRow,
)
from mergeloom.report.tensors import writes_by_name

if TYPE_CHECKING:
    from mergeloom.engine.run.lanes import Lane
    from mergeloom.results import PlannedMerge

_MAX_STEPS = 400
"""Maximum number of memory steps in a chart."""


def details_report(
    planned: PlannedMerge, samples: Sequence[Sample] = (), lanes: Sequence[Lane] = ()
) -> DetailsReport:
    """The details of a plan, with ``samples`` and ``lanes`` of its run."""
    tasks: dict[str, int] = {}
    shown = tuple(
        LaneRow(
            lane.title,
            lane.seconds,
            lane.busy,
            tuple(tasks.setdefault(name, len(tasks)) for name in lane.names),
        )
        for lane in lanes
    )
    rows = _RowBuilder(planned)
    tensors = tuple(map(rows.tensor, planned.plan.tensor_plans()))
    return DetailsReport(
        models=tuple(rows.models),
        values=tuple(rows.values),
        tensors=tensors,
        overhead_bytes=planned.schedule.overhead_bytes,
        steps=tuple(_downsampled(list(_memory_steps(planned)))),
        samples=tuple(samples),
        lanes=shown,
        tasks=tuple(tasks),
        text=planned.plan.configuration.text,
    )


class _RowBuilder:
    """Creates rows that share values and models."""

    def __init__(self, planned: PlannedMerge) -> None:
        self._writes = writes_by_name(planned.plan.graph.writes)
        self.models: dict[str, int] = {}
        self.values: dict[ValueRow, int] = {}
        self._positions: dict[int, tuple[int, ...]] = {}
        """Positions of the values of parameters, by `id`: tensors of one kind share them."""
        self._alive: list[Mapping[str, ResolvedValue]] = []
        """Keeps the objects alive whose `id` is in ``_positions``."""

    def tensor(self, plan: TensorPlan) -> TensorRow:
        write = self._writes[plan.name]
        return TensorRow(
            name=plan.name,
            shape=write.merge.shape,
            dtype=write.dtype.name,
            layer=plan.layer,
            how="copy" if plan.method is None else plan.method.name,
            because=plan.copied_because,
            inputs=tuple([self._input_row(plan, item) for item in plan.contributions]),
            values=self._value_positions(plan.settings),
        )

    def _input_row(self, plan: TensorPlan, item: Contribution) -> InputRow:
        name = item.stored_name
        return InputRow(
            model=self.models.setdefault(item.model.name, len(self.models)),
            layer=item.layer,
            tensor=None if name == plan.name else name,
            base=item.is_base,
            values=self._value_positions(item.parameters),
        )

    def _value_positions(self, parameters: Mapping[str, ResolvedValue]) -> tuple[int, ...]:
        found = self._positions.get(id(parameters))
        if found is None:
            rows = [_value_row(name, resolved) for name, resolved in parameters.items()]
            found = tuple(self.values.setdefault(row, len(self.values)) for row in rows)
            self._positions[id(parameters)] = found
            self._alive.append(parameters)
        return found


def _value_row(name: str, found: ResolvedValue) -> ValueRow:
    entry = found.entry
    return ValueRow(
        parameter=name,
        value=found.value,
        level=found.level,
        line=0 if entry is None else entry.place.line,
        filter=None if entry is None else entry.filter,
    )


def _memory_steps(planned: PlannedMerge) -> Iterator[MemoryStep]:
    written = 0
    for placed in planned.schedule.merges:
        flow, work = placed.flow, placed.work
        written += sum(write.nbytes for write in work.writes)
        kept = flow.kept_bytes + placed.kept_for_others
        moving = flow.working_bytes - flow.kept_bytes - flow.resident_bytes
        yield MemoryStep(work.name, written, kept, flow.resident_bytes, moving)


def _downsampled(steps: Sequence[MemoryStep]) -> Iterator[MemoryStep]:
    """The largest step of each group, with as many groups as a chart can show."""
    length = -(-len(steps) // _MAX_STEPS) or 1
    for start in range(0, len(steps), length):
        yield max(steps[start : start + length], key=_buffer_bytes)


def _buffer_bytes(step: MemoryStep) -> Any:
    return step.kept_bytes + step.resident_bytes + step.moving_bytes
