"""The outline of a merge: the source layers of each output layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from mergeloom.planners.outline import Layers, Outline, OutlinePart, OutlineSlice, OutlineSource
from mergeloom.planners.slices.slices import Slice
from mergeloom.planners.slices.stage import Stage, TowerPlan

_MAX_LISTED = 3

ScaleFactors = Mapping[Layers, Mapping[str, Sequence[float]]]
"""Scale factors of tensors, by the layers of a slice and the tensor name without its layer
number."""


def outline(stage: Stage) -> Outline:
    """The outline of a planned document."""
    document = stage.document
    dtype = document.out_dtype or document.dtype
    return Outline(
        name=document.name,
        method=document.merge_method,
        dtype=dtype.name if dtype is not None else None,
        parts=tuple(_outline_part(tower, stage) for tower in stage.towers),
        notes=stage.notes,
    )


def _outline_part(plan: TowerPlan, stage: Stage) -> OutlinePart:
    tower = plan.tower
    factors = _scale_factors(stage, plan)
    return OutlinePart(
        name=tower.name,
        layers=plan.layers,
        slices=tuple(
            _outline_slice(part, stage, plan, factors) for part in plan.slices if tower.layers
        ),
    )


def _outline_slice(
    part: Slice, stage: Stage, plan: TowerPlan, factors: ScaleFactors
) -> OutlineSlice:
    layers = part.first, part.first + part.length
    how, detail = "merged", ""
    if plan.is_copied:
        how = "copied"
    elif stage.document.merge_method == "passthrough":
        how, detail = _copy_and_detail(factors.get(layers, {}))
    return OutlineSlice(
        layers=layers,
        how=how,
        detail=detail,
        sources=tuple(
            OutlineSource(source.model.name, (source.start, source.stop), position == part.base)
            for position, source in enumerate(part.sources)
        ),
    )


def _copy_and_detail(factors: Mapping[str, Sequence[float]]) -> tuple[str, str]:
    """How a slice with these factors is copied, and the scaled tensors as text."""
    scaled = {name: values for name, values in factors.items() if any(v != 1 for v in values)}
    if not scaled:
        return "copied", ""
    by_factor: dict[str, list[str]] = defaultdict(list)
    for name, values in scaled.items():
        by_factor[_factor_text(values)].append(name)
    if len(scaled) == len(factors) and len(by_factor) == 1:
        return "scaled", f"scaled by {next(iter(by_factor))}"
    parts = []
    for factor, names in by_factor.items():
        more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
        parts.append(f"{', '.join(names[:_MAX_LISTED])}{more} scaled by {factor}")
    return "partly scaled", "; ".join(parts)


def _factor_text(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _scale_factors(stage: Stage, plan: TowerPlan) -> ScaleFactors:
    """The factors of all copied tensors of a stage; empty if none is scaled."""
    blocks = stage.document.blocks()
    if stage.document.merge_method != "passthrough" or not any(
        "scale" in b.entries for b in blocks
    ):
        return {}
    found: dict[Layers, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    prefix = plan.tower.prefix
    for tensor in stage.tensor_plans():
        if tensor.layer is None or not tensor.name.startswith(prefix):
            continue
        layers = next(
            (
                (part.first, part.first + part.length)
                for part in plan.slices
                if part.first <= tensor.layer < part.first + part.length
            ),
            None,
        )
        if layers is None:  # a layer after the last, which predicts further tokens
            continue
        scale = tensor.contributions[0].parameters.get("scale")
        factor = 1.0 if scale is None or scale.value is None else float(scale.value)
        suffix = tensor.name[len(prefix) :].partition(".")[2].removesuffix(".weight")
        found[layers][suffix].append(factor)
    return found
