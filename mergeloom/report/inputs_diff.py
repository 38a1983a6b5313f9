"""The input tensors with which each tensor of a merge's output is compared."""

from __future__ import annotations

from collections import Counter

from mergeloom.planners.comparison import Aligned
from mergeloom.report.detail_records import DetailsReport
from mergeloom.report.plan_records import MergeReport


def base_of(report: MergeReport) -> str | None:
    """The most common base model of the output's slices; ``None`` if there is none, or it is a
    stage, which is not stored."""
    stages = {stage.name for stage in report.stages}
    parts = report.stages[-1].parts
    sources = [source for part in parts for each in part.slices for source in each.sources]
    found = Counter(
        source.model for source in sources if source.base and source.model not in stages
    )
    return next((name for name, _ in found.most_common(1)), None)


def sources_of(report: MergeReport, details: DetailsReport) -> dict[str, list[Aligned]]:
    """Tensors of the output by the model that they were made of, each with the one in it; where a
    model has several parts in a tensor, with the first. Stages are not stored: they are left
    out."""
    base, stages = base_of(report), {stage.name for stage in report.stages}
    found: dict[str, dict[str, Aligned]] = {}
    for row in details.tensors:
        names = [(details.models[each.model], each.tensor or row.name) for each in row.inputs]
        origin = dict(reversed(names)).get(base) if base is not None else None
        for model, name in names:
            if model not in stages:
                found.setdefault(model, {}).setdefault(row.name, Aligned(row.name, name, origin))
    return {model: list(aligned.values()) for model, aligned in found.items()}
