"""Reasons why a tensor of a model is not used in a merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from mergeloom.planners.models.renamed import RenamedModel
from mergeloom.planners.recipe import LeftOutReason
from mergeloom.planners.slices.stage import Stage, TowerPlan


class LeftOut:
    """The reasons for one planned document, by model name and stored tensor name."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._planner_names: dict[str, Mapping[str, str]] = {}

    def __call__(self, model: str, tensor: str) -> LeftOutReason:
        if model == self._donor:
            return "only its token tables are used", None
        if model not in self._planner_names:
            self._planner_names[model] = _planner_names(self._stage, model)
        here = self._planner_names[model].get(tensor, tensor)
        layer = _layer_of(here, self._stage.towers)
        if layer is not None and here.endswith(self._positional_suffixes):
            return "only the first or the last layer of the output has it", None
        if layer is not None:
            return "layers that no slice uses", layer
        if tensor in self._same_as_embedding:
            return f"its bytes are the embedding's, '{self._same_as_embedding[tensor]}'", None
        return _outside_reason(here, self._stage.towers), None

    @cached_property
    def _donor(self) -> str | None:
        """The donor of a transplant, which is not merged."""
        settings = self._stage.document.tokenizer
        if settings is None or settings.transplant is None:
            return None
        donor, towers = str(settings.source), self._stage.towers
        merged = {s.model.name for plan in towers for part in plan.slices for s in part.sources}
        return None if donor in merged else donor

    @cached_property
    def _positional_suffixes(self) -> tuple[str, ...]:
        """Suffixes that belong to the first or last position in any model."""
        towers = self._stage.towers
        sources = (source for plan in towers for part in plan.slices for source in part.sources)
        found = {suffix for s in sources for suffix in (*s.tower.first, *s.tower.last)}
        return tuple(found)

    @cached_property
    def _same_as_embedding(self) -> Mapping[str, str]:
        """Stored names of weights equal to their model's embedding, mapped to the embedding's."""
        found = {}
        for model in self._stage.models:
            tokens = model.tokens
            embedding = model.stored(tokens.embedding) if tokens.embedding is not None else None
            for name in tokens.equal_weights if embedding is not None else ():
                other = model.stored(name)
                if other is not None and embedding is not None:
                    found[other.name] = embedding.name
        return found


def _planner_names(stage: Stage, name: str) -> dict[str, str]:
    """The planner's names of a model's tensors by stored name."""
    found: dict[str, str] = {}
    for model in stage.models:
        if model.name == name and isinstance(model, RenamedModel):
            found |= {stored: new for new, stored in model.names.items()}
    return found


def _outside_reason(tensor: str, towers: Sequence[TowerPlan]) -> str:
    if any(tensor in plan.tower.before for plan in towers):
        return "weights before the layers come from the first slice"
    if any(tensor in plan.tower.after for plan in towers):
        return "weights after the layers come from the last slice"
    return "the base or first model has no such tensor"


def _layer_of(tensor: str, towers: Sequence[TowerPlan]) -> int | None:
    for plan in towers:
        prefix = plan.tower.prefix
        if prefix and tensor.startswith(prefix):
            number = tensor[len(prefix) :].partition(".")[0]
            if number.isdigit():
                return int(number)
    return None
