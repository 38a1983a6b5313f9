"""The JSON documents that ``--json`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergeloom.engine import job as jobs
from mergeloom.engine.hardware.accelerators import Accelerator
from mergeloom.engine.hardware.rates import Rates
from mergeloom.methods.declare import REQUIRED, Method, Parameter
from mergeloom.planners.config.parameters import Resolved
from mergeloom.planners.slices.slices import Slice
from mergeloom.planners.slices.tensor_plan import Contribution, TensorPlan, output_dtype

if TYPE_CHECKING:
    from mergeloom.results import MergeResult, PlannedMerge


def plan_document(planned: PlannedMerge) -> dict[str, Any]:
    """What ``mergeloom plan --json`` prints; sizes in bytes."""
    plan, schedule = planned.plan, planned.schedule
    return {
        "output": {
            "layers": plan.layers,
            "parameters": plan.parameters,
            "bytes": sum(file.size for file in plan.graph.files),
            "tensors": len(plan.graph.writes),
            "shards": [{"name": file.name, "bytes": file.size} for file in plan.graph.files],
            "towers": [
                {
                    "name": tower.tower.name,
                    "layers": tower.layers,
                    "slices": [_slice(part) for part in tower.slices],
                }
                for tower in plan.stage.towers
            ],
        },
        "method": plan.stage.rules.method.name,
        "seed": plan.options.seed,
        "models": {name: str(model.directory) for name, model in plan.models.items()},
        "tasks": plan.graph.counts(),
        "memory": {
            "budget_bytes": planned.budget_bytes,
            "peak_bytes": schedule.peak_bytes,
            "minimum_bytes": schedule.minimum_bytes,
        },
        "workers": schedule.workers,
        "compiled": schedule.compiled,
        "devices": [_device(device, schedule.rates) for device in schedule.devices],
        "rates": {
            "storage_bytes_per_second": schedule.rates.storage,
            "storage_measured": schedule.rates.knows_storage,
            "cpu_speed": 1 / schedule.rates.cpu(schedule.compiled),
            "cpu_measured": schedule.rates.knows_cpu,
        },
        "placement": [
            {"device": schedule.place_name(seat), "reason": seat.why.value, "merges": number}
            for seat, number in schedule.seats.items()
        ],
        "io": {
            "read_bytes": schedule.read_bytes,
            "write_bytes": schedule.write_bytes,
            "repeated_bytes": schedule.repeated_bytes,
        },
        "warnings": list(plan.warnings),
        "config_changes": list(plan.config_changes),
        "unused_inputs": [
            {
                "model": item.model,
                "reason": item.reason,
                "layers": [list(layers) for layers in item.layers],
                "tensors": list(item.names),
                "bytes": item.nbytes,
            }
            for item in plan.unused
        ],
        "fingerprint": plan.fingerprint,
    }


def result_document(result: MergeResult) -> dict[str, Any]:
    """What ``mergeloom merge --json`` prints: the plan, and what was measured."""
    outcome = result.outcome
    measured = jobs.measured(outcome)
    seconds = measured.pop("wall_seconds")
    checked = {} if result.checked is None else {"checked": result.checked.document()}
    return {
        **plan_document(result.planned),
        "directory": str(result.output),
        "resumed_tensors": outcome.resumed,
        "was_finished": outcome.was_finished,
        "wall_seconds": seconds,
        "measured": measured,
        "run_warnings": list(outcome.warnings),
        **checked,
    }


def explain_document(tensor: TensorPlan, planned: PlannedMerge) -> dict[str, Any]:
    """What ``mergeloom explain --json`` prints."""
    write = next(w for w in planned.plan.graph.writes if w.name == tensor.name)
    return {
        "tensor": tensor.name,
        "shape": list(write.shape),
        "dtype": output_dtype(tensor, planned.plan.stage.document).name,
        "file": write.file.name,
        "layer": tensor.layer,
        "method": tensor.method.name if tensor.method is not None else "copy",
        "copied_because": tensor.copied_because,
        "parameters": _resolved(tensor.settings),
        "inputs": [_contribution(item) for item in tensor.contributions],
    }


def method_document(method: Method) -> dict[str, Any]:
    """What ``mergeloom methods NAME --json`` prints."""
    return {
        "name": method.name,
        "summary": method.summary,
        "formula": method.formula,
        "reference": method.reference,
        "works": method.works,
        "draws": method.draws,
        "base_model": method.base.value,
        "models": [method.minimum, method.maximum],
        "model_parameters": [_parameter(parameter) for parameter in method.model_parameters],
        "parameters": [_parameter(parameter) for parameter in method.settings],
    }


def _device(device: Accelerator, rates: Rates) -> dict[str, Any]:
    there = rates.of(device)
    return {
        "name": device.name,
        "title": device.title,
        "memory_bytes": device.memory_bytes,
        "bus_bytes_per_second": there.bus_rate,
        "bus_measured": rates.knows_bus(device),
        "speed": there.speed,
        "speed_measured": rates.knows_speed(device),
    }


def _slice(part: Slice) -> dict[str, Any]:
    return {
        "layers": [part.first, part.first + part.length],
        "sources": [
            {
                "model": source.model.name,
                "layers": [source.start, source.stop],
                "base": position == part.base,
            }
            for position, source in enumerate(part.sources)
        ],
    }


def _contribution(item: Contribution) -> dict[str, Any]:
    return {
        "model": item.model.name,
        "tensor": item.tensor,
        "layer": item.layer,
        "base": item.is_base,
        "shape": list(item.model.shape(item.tensor)),
        "dtype": item.model.dtype(item.tensor).name,
        "parameters": _resolved(item.parameters),
    }


def _resolved(parameters: Mapping[str, Resolved]) -> dict[str, Any]:
    return {
        name: {
            "value": found.value,
            "level": found.level,
            "place": str(found.entry.place) if found.entry is not None else None,
            "filter": found.entry.filter if found.entry is not None else None,
            "t": found.t,
        }
        for name, found in parameters.items()
    }


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "kind": parameter.kind.__name__,
        "help": parameter.help,
        "required": parameter.default is REQUIRED,
        "default": None if parameter.default is REQUIRED else parameter.default,
        "minimum": parameter.minimum,
        "maximum": parameter.maximum,
    }
