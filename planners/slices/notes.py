"""Notes on documents that are valid, but whose author may have meant something else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mergeloom.planners.config.config import MergeDocument
from mergeloom.planners.slices.modules import modules_around, projectors
from mergeloom.planners.slices.stage import TowerPlan
from mergeloom.planners.slices.unified_models import UnifiedModels


def notes(
    document: MergeDocument, towers: Sequence[TowerPlan], models: UnifiedModels
) -> Iterator[str]:
    """How the structure of models was interpreted, if another interpretation is possible."""
    for model in models.renamed():
        for stored, prefix in model.prefixes.items():
            yield (
                f"'{model.name}': its layers '{stored}N' are taken for '{prefix}N', and "
                "the weights around them accordingly"
            )
    for plan in towers:
        tower = plan.tower
        ends = [plan.slices[0], plan.slices[-1]]
        first, last = (
            _listed_models(source.model.name for source in part.sources) for part in ends
        )
        if first != last and (tower.before or tower.after):
            before, after = (modules_around(tower, side) for side in (tower.before, tower.after))
            title = "" if tower.name == "default" else f"{tower.name}: "
            yield (
                f"{title}weights outside the layers from {first}: {_listed_modules(before)}; "
                f"from {last}: {_listed_modules(after)}"
            )
        if None not in document.modules:
            for path in projectors((*tower.before, *tower.after)):
                if tower.name != path.rpartition(".")[2]:
                    yield (
                        f"'{path}' is made like '{tower.name}', since 'modules' has no entry for it"
                    )


def _listed_models(names: Iterable[str]) -> str:
    return " and ".join(f"'{name}'" for name in dict.fromkeys(names))


def _listed_modules(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "") or "none"
