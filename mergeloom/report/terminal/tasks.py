"""The tasks of a plan as text, in execution order."""

from __future__ import annotations

from collections.abc import Iterator

from mergeloom.report.records import Task, TaskInput, TaskList
from mergeloom.report.terminal.console import plural, shape_text
from mergeloom.report.units import data_text


def task_lines(report: TaskList) -> Iterator[str]:
    """One block of plain text lines per task; there may be hundreds of thousands."""
    for task in report.tasks:
        yield from _task_lines(task)


def _task_lines(task: Task) -> Iterator[str]:
    how = plural(task.passes, "pass", "passes")
    if task.tiles > 1:
        how += f" of {plural(task.tiles, 'tile')}"
    if task.passes > 1:
        how += ", inputs stay in memory" if task.resident else ", inputs are read in each"
    yield f"{task.number}  {task.name}  {shape_text(task.shape)}  on {task.device}, {how}"
    for each in task.inputs:
        yield f"    load   {_place_text(each)}"
    yield f"    merge  {task.kernel}"
    for each in task.writes:
        yield f"    write  {_place_text(each)}"


def _place_text(each: TaskInput) -> str:
    if each.file is None:
        return f"{each.name}  (of an earlier stage)"
    amount = data_text(each.bytes or 0)
    more = f" and {each.parts - 1} more places" if each.parts > 1 else ""
    return f"{each.name}  {each.dtype}, {amount} at byte {each.offset} of {each.file}{more}"
