"""The output directory of a planned merge: state, disk space, clones, overlap with inputs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mergeloom.engine.base.errors import Finding, OutputError, Severity
from mergeloom.engine.output.directory import needed_bytes
from mergeloom.engine.output.state import examine
from mergeloom.engine.plan.schedule import schedule
from mergeloom.engine.run.clone import CloneBytes, may_share, possible_clones, writes_of
from mergeloom.engine.storage.source import IOMode
from mergeloom.report.plan_records import DiskReport
from mergeloom.report.state import state_record

if TYPE_CHECKING:
    from mergeloom.results import PlannedMerge


def with_output_state(planned: PlannedMerge, output: Path, io: IOMode) -> PlannedMerge:
    """``planned`` with the state of its output directory and, unless ``io`` forbids them, clones.

    Raises:
        OutputError: the merge would overwrite an input.
    """
    findings = check_overlap(planned, output)
    if io is IOMode.AUTO:
        planned = _with_clones(planned, output)
    plan = planned.plan
    state = state_record(examine(output), plan.fingerprint, plan.identity, len(plan.graph.writes))
    return replace(
        planned,
        output_state=state,
        disk=_disk_report(planned, output, state.will == "nothing"),
        findings=(*planned.findings, *findings),
    )


def _with_clones(planned: PlannedMerge, output: Path) -> PlannedMerge:
    """``planned`` with clones in place of copies, where the file system of ``output`` can make
    them."""
    graph = planned.plan.graph
    shared: dict[str, bool] = {}
    clones = []
    for clone in possible_clones(graph):
        path = clone.source.path
        if path not in shared:
            shared[path] = may_share(path, output)
        if shared[path]:
            clones.append(clone)
    if not clones:
        return planned
    rest = graph.without(writes_of(clones))
    return replace(
        planned,
        schedule=schedule(rest, planned.budget_bytes, planned.machine),
        clones=CloneBytes.of(clones, rest),
    )


def check_overlap(planned: PlannedMerge, output: Path) -> tuple[Finding, ...]:
    """Check that a merge does not overwrite its inputs; warns if the output is inside one.

    Raises:
        OutputError: it would overwrite an input.
    """
    return tuple(_overlaps(planned, output))


def _overlaps(planned: PlannedMerge, output: Path) -> Iterator[Finding]:
    target = Path(os.path.realpath(output))
    for name, model in planned.plan.models.items():
        source = Path(os.path.realpath(model.folder.name))
        if target == source:
            raise OutputError(
                f"'{output}' is the input '{name}'", remedy="choose another output directory"
            )
        if target.is_relative_to(source):
            yield Finding(
                f"the output '{output}' lies inside the input '{name}'",
                remedy="choose a directory beside it, to keep them apart",
                code="output-inside-input",
                severity=Severity.WARNING,
            )


def _disk_report(planned: PlannedMerge, output: Path, finished: bool) -> DiskReport | None:
    """Needed and free disk space for the output; ``None`` if the free space is unknown."""
    parents = (output, *output.absolute().parents)
    parent = next((each for each in parents if os.path.isdir(each)), None)
    if parent is None:
        return None
    try:
        free = shutil.disk_usage(parent).free
    except OSError:
        return None
    needed = needed_bytes(output, planned.plan.graph, planned.plan.side_files)
    needed -= planned.clones.cloned
    return DiskReport(0 if finished else needed, free)
