"""The tasks of a plan in execution order, as records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mergeloom.engine.graph.graph import Load, Merge, Write
from mergeloom.engine.plan.schedule import ScheduledMerge
from mergeloom.report.records import Task, TaskInput, TaskList

if TYPE_CHECKING:
    from mergeloom.results import PlannedMerge


def task_list(planned: PlannedMerge) -> TaskList:
    """All merges of a plan, each with its inputs and outputs."""
    return TaskList(fingerprint=planned.plan.fingerprint, tasks=tuple(_tasks_in_order(planned)))


def _tasks_in_order(planned: PlannedMerge) -> Iterator[Task]:
    schedule = planned.schedule
    for number, placed in enumerate(schedule.merges):
        work = placed.work
        root = work.root
        yield Task(
            number=number,
            name=work.writes[0].name,
            kernel=repr(root.kernel),
            shape=root.shape,
            inputs=tuple(map(_task_input, (*root.gather.inputs, *root.gather.side_loads))),
            writes=tuple(map(_task_output, work.writes)),
            device=schedule.device_name(placed.assignment),
            passes=len(work.passes),
            tiles=-(-work.grains.count // placed.flow.tile) if placed.flow.tile else 0,
            resident=_is_resident(placed),
        )


def _task_input(node: Load | Merge) -> TaskInput:
    if isinstance(node, Merge):
        return TaskInput(node.name, None, None, None, None)
    parts = list(node.bytes.ranges())
    file, offset = (parts[0].source.name, parts[0].offset) if parts else (None, None)
    nbytes = node.stored_bytes
    return TaskInput(node.name, file, node.dtype.name, offset, nbytes, max(len(parts), 1))


def _task_output(write: Write) -> TaskInput:
    return TaskInput(write.name, write.file.name, write.dtype.name, write.offset, write.nbytes)


def _is_resident(placed: ScheduledMerge) -> bool:
    flow = placed.flow
    last = len(placed.work.passes) - 1
    return last == 0 or not flow.reads(last, 0)
