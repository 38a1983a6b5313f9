"""The report of ``explain``: the origin of output tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from mergeloom.engine.graph.graph import Write
from mergeloom.planners.config.parameters import ResolvedValue
from mergeloom.planners.models.model import LazyTensor, OutputTensor
from mergeloom.planners.plan import Decisions, matching_plans
from mergeloom.planners.tensors import Contribution, TensorPlan
from mergeloom.report import records

if TYPE_CHECKING:
    from mergeloom.results import PlannedMerge


T = TypeVar("T", Write, OutputTensor)


def explain_plan(planned: PlannedMerge, pattern: str | None) -> records.ExplainReport:
    """The report of the output tensors that match a pattern; see `matching_plans`."""
    plan = planned.plan
    writes = writes_by_name(plan.graph.writes)
    files = {write.name: write.file.name for write in plan.graph.writes}
    return _explain_report(
        matching_plans(plan.tensor_plans(), list(writes), pattern), writes, files
    )


def explain_decisions(decided: Decisions, pattern: str | None) -> records.ExplainReport:
    """As `explain_plan`, from decisions, before the plan is complete."""
    recipe = decided.recipe
    tensors = writes_by_name(recipe.output.tensors.values())
    found = matching_plans(recipe.plans(), list(tensors), pattern)
    return _explain_report(found, tensors, decided.files_by_tensor())


def writes_by_name(written: Iterable[T]) -> dict[str, T]:
    """Writes by name; those of quantised weights also by the name of the unquantised tensor."""
    own = {each.name: each for each in written}
    plain = {
        each.merge.name: each
        for each in own.values()
        if not each.part and not isinstance(each, LazyTensor)  # a late tensor has no codes
    }
    return plain | own


def _explain_report(
    tensors: Sequence[TensorPlan],
    written: Mapping[str, Write] | Mapping[str, OutputTensor],
    files: Mapping[str, str],
) -> records.ExplainReport:
    found = []
    for tensor in tensors:
        output = written[tensor.name]
        found.append(
            records.TensorReport(
                tensor=tensor.name,
                shape=output.merge.shape,
                dtype=output.dtype.name,
                file=files[output.name],
                layer=tensor.layer,
                method=tensor.method.name if tensor.method is not None else "copy",
                formula=tensor.method.formula if tensor.method is not None else None,
                copied_because=tensor.copied_because,
                parameters=_parameter_values(tensor.settings),
                inputs=tuple(map(_tensor_input, tensor.contributions)),
            )
        )
    return records.ExplainReport(tensors=tuple(found))


def _tensor_input(item: Contribution) -> records.TensorInput:
    return records.TensorInput(
        model=item.model.name,
        tensor=item.stored_name,
        layer=item.layer,
        base=item.is_base,
        shape=item.model.shape(item.tensor),
        dtype=item.model.dtype(item.tensor).name,
        parameters=_parameter_values(item.parameters),
    )


def _parameter_values(
    parameters: Mapping[str, ResolvedValue],
) -> Mapping[str, records.ParameterValue]:
    return {name: _parameter_value(found) for name, found in parameters.items()}


def _parameter_value(found: ResolvedValue) -> records.ParameterValue:
    entry = found.entry
    return records.ParameterValue(
        value=found.value,
        level=found.level,
        place=entry.place if entry is not None else None,
        filter=entry.filter if entry is not None else None,
        gradient=tuple(entry.value) if entry is not None and found.t is not None else None,
        t=found.t,
    )
