"""The reports of ``plan`` and ``merge``, as records."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from mergeloom.engine.graph.graph import copied_bytes
from mergeloom.engine.hardware import process
from mergeloom.engine.hardware.accelerators import Accelerator
from mergeloom.engine.plan.duration import estimated_seconds
from mergeloom.engine.plan.estimate import STORAGE_RATE
from mergeloom.planners.output.licences import Licence, licence_of
from mergeloom.planners.unused import Unused
from mergeloom.report import plan_records
from mergeloom.report.parameters import parameter_lines
from mergeloom.report.plan_records import MergeReport, PlanReport
from mergeloom.report.vocabulary import vocabulary_report

if TYPE_CHECKING:
    from mergeloom.check import Checked
    from mergeloom.results import MergeResult, PlannedMerge


def plan_report(planned: PlannedMerge) -> PlanReport:
    """The report of a plan."""
    return PlanReport(**_plan_fields(planned))


def merge_report(result: MergeResult) -> MergeReport:
    """The report of a finished merge."""
    from mergeloom.engine.run import outcome as outcomes

    outcome = result.outcome
    measured = outcomes.measured(outcome)
    seconds = measured.pop("wall_seconds")
    predicted = None
    if outcome.schedule is not None:
        predicted = plan_records.Predicted(**outcomes.predicted(outcome))
    return MergeReport(
        **_plan_fields(result.planned),
        directory=str(result.output),
        resumed_tensors=outcome.resumed,
        was_finished=outcome.was_finished,
        wall_seconds=seconds,
        measured=plan_records.Measured(**measured),
        predicted=predicted,
        run_warnings=result.findings,
        checked=None if result.checked is None else check_report(result.checked),
        coding_errors=_coding_errors(result),
    )


def _plan_fields(planned: PlannedMerge) -> dict[str, Any]:
    plan, schedule = planned.plan, planned.schedule
    path = plan.configuration.path
    return {
        "configuration": None if path is None else str(path),
        "output": _output_report(planned),
        "vocabulary": vocabulary_report(plan.vocabulary),
        "stages": plan.outlines,
        "method": plan.outlines[-1].method,
        "parameters": parameter_lines(plan.configuration, plan.outlines[-1]),
        "draws": plan.draws,
        "seed": plan.options.seed,
        "options": planned.options,
        "models": tuple(
            plan_records.InputReport(
                name,
                os.path.abspath(model.folder.name),
                model.nbytes,
                len(model.tensors),
                _licence_text(licence_of(model.folder)),
            )
            for name, model in plan.models.items()
        ),
        "tasks": plan.graph.counts(),
        "memory": plan_records.MemoryReport(
            planned.budget_bytes,
            schedule.peak_bytes,
            schedule.minimum_bytes,
            planned.memory_limit,
        ),
        "workers": schedule.workers,
        "compiled": schedule.compiled,
        "to_compile": tuple(sorted(schedule.missing)),
        "devices": tuple(map(_device_report, schedule.devices)),
        "placement": tuple(
            plan_records.PlacementReport(
                schedule.device_name(assignment), assignment.reason.value, number
            )
            for assignment, number in schedule.assignments.items()
        ),
        "io": plan_records.IOReport(
            schedule.read_bytes + planned.clones.read,
            schedule.write_bytes + planned.clones.written,
            schedule.repeated_bytes,
            planned.clones.cloned,
            copied_bytes(plan.graph) - planned.clones.cloned,
            sum(spill.size for spill in plan.graph.spills),
        ),
        "time": _time_report(planned),
        "disk": planned.disk,
        "output_state": planned.output_state,
        "warnings": planned.findings,
        "unused_inputs": tuple(map(_unused_input, plan.unused)),
        "fingerprint": plan.fingerprint,
    }


def _output_report(planned: PlannedMerge) -> plan_records.OutputReport:
    plan = planned.plan
    writes, files = plan.graph.writes, plan.graph.files
    return plan_records.OutputReport(
        layers=plan.layers,
        parameters=plan.parameters,
        bytes=sum(file.size for file in files),
        tensors=len(writes),
        dtypes=dict(Counter(write.dtype.name for write in writes)),
        tied=plan.tied,
        shards=tuple(plan_records.Shard(file.name, file.size) for file in files),
        side_files=tuple(file.name for file in plan.side_files),
        config_changes=plan.config_changes,
    )


def _licence_text(licence: Licence | None) -> str | None:
    return None if licence is None else str(licence)


def _time_report(planned: PlannedMerge) -> plan_records.TimeReport:
    estimated, ratios = estimated_seconds(planned.schedule), process.remembered_ratios()
    usual = sorted(ratios)[len(ratios) // 2] if ratios else 1.0
    return plan_records.TimeReport(
        estimated.total * usual,
        estimated.storage * usual,
        estimated.compute * usual,
        STORAGE_RATE,
        low_seconds=estimated.total * min(ratios) if ratios else None,
        high_seconds=estimated.total * max(ratios) if ratios else None,
    )


def _coding_errors(result: MergeResult) -> tuple[plan_records.CodingError, ...]:
    """The quantisation errors, largest first, under the names of the unquantised tensors."""
    errors = result.outcome.errors
    names = {w.name: w.merge.name for w in result.planned.plan.graph.writes if w.name in errors}
    found = [(names.get(name, name), error) for name, error in errors.items()]
    found.sort(key=lambda each: -each[1])
    return tuple(plan_records.CodingError(*each) for each in found)


def check_report(checked: Checked) -> plan_records.CheckReport:
    """The record of a check."""
    return plan_records.CheckReport(
        checked.tensors, checked.elements, dict(checked.passed_over), checked.wrong
    )


def _device_report(device: Accelerator) -> plan_records.DeviceReport:
    return plan_records.DeviceReport(device.name, device.title, device.memory_bytes)


def _unused_input(item: Unused) -> plan_records.UnusedInput:
    return plan_records.UnusedInput(item.model, item.reason, item.layers, item.names, item.nbytes)
