"""The input tensors that each tensor of a merge's output is compared with."""

from __future__ import annotations

from collections import Counter

from mergeloom.planners.comparison import AlignedNames
from mergeloom.report.detail_records import DetailsReport
from mergeloom.report.plan_records import MergeReport


def common_base(report: MergeReport) -> str | None:
    """The most common base model of the output's slices; ``None`` if there is none. Stages do not
    count, because they are not stored."""
    stages = {stage.name for stage in report.stages}
    parts = report.stages[-1].parts
    sources = [source for part in parts for each in part.slices for source in each.sources]
    found = Counter(
        source.model for source in sources if source.base and source.model not in stages
    )
    return next((name for name, _ in found.most_common(1)), None)


def compared_tensors(report: MergeReport, details: DetailsReport) -> dict[str, list[AlignedNames]]:
    """For each input model, the output tensors that were made of it, each with the tensor it is
    compared with: the first one, if it was made of several. Stages are left out, because they are
    not stored."""
    base, stages = common_base(report), {stage.name for stage in report.stages}
    found: dict[str, dict[str, AlignedNames]] = {}
    for row in details.tensors:
        names = [(details.models[each.model], each.tensor or row.name) for each in row.inputs]
        origin = dict(reversed(names)).get(base) if base is not None else None
        for model, name in names:
            if model not in stages:
                found.setdefault(model, {}).setdefault(
                    row.name, AlignedNames(row.name, name, origin)
                )
    return {model: list(aligned.values()) for model, aligned in found.items()}
