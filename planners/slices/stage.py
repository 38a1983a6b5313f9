"""A planned document: its towers, and the plan of each output tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property

from mergeloom.engine.base.records import dataclass
from mergeloom.planners.config.config import MergeDocument, Module
from mergeloom.planners.models.architecture import Tower
from mergeloom.planners.models.model import Model
from mergeloom.planners.models.roles import has_part_per_layer
from mergeloom.planners.models.token_weights import Head
from mergeloom.planners.slices.per_layer_weights import gather_parts
from mergeloom.planners.slices.slice_checks import slice_levels
from mergeloom.planners.slices.slices import (
    LayerTensors,
    Slice,
    TensorSources,
    tensor_sources,
)
from mergeloom.planners.slices.tensor_plan import (
    MergingRules,
    SliceRules,
    copy_tensor,
)
from mergeloom.planners.tensors import TensorPlan


@dataclass(frozen=True, slots=True)
class TowerPlan:
    """One tower of the output and its slices.

    ``is_copied`` if the document does not mention it, so that it is the base or first model's.
    """

    tower: Tower
    slices: tuple[Slice, ...]
    module: Module
    is_copied: bool = False

    @property
    def layers(self) -> int:
        return sum(part.length for part in self.slices)

    @property
    def is_unchanged(self) -> bool:
        """Whether every output layer has the same number in all of its sources."""
        filled = [part for part in self.slices if part.length]
        alike = {tuple(source.model.name for source in part.sources) for part in filled}
        return len(alike) <= 1 and all(
            source.start == part.first and source.tower.layers == self.layers
            for part in filled
            for source in part.sources
        )


@dataclass(frozen=True)
class Stage:
    """One planned document.

    ``embedding`` and ``head`` are names in the output; ``tied`` says whether they are one weight.
    ``notes`` explain interpretations that are not obvious.
    """

    document: MergeDocument
    rules: MergingRules
    towers: tuple[TowerPlan, ...]
    donor: Model
    tied: bool
    embedding: str | None
    head: str | None
    notes: tuple[str, ...] = ()

    def tensor_plans(self) -> Iterator[TensorPlan]:
        """The plan of each output tensor, in order."""
        tokens = [model.tokens for model in self.models]
        token_weights = {name for found in tokens for name in (found.embedding, found.head)}
        if self.tied and self.head in self.donor.tokens.equal_weights:
            token_weights.discard(self.head)  # the donor stores a copy, which its class may read
        yield from self._embedding()
        for tower in self.towers:
            for wanted in tensor_sources(tower.tower, tower.slices):
                if isinstance(wanted, LayerTensors):
                    yield from self._plan_layer(wanted, tower)
                elif wanted.layer is not None:
                    yield self._plan(wanted, tower)
                elif wanted.name not in token_weights:
                    yield self._outside_layers(wanted, tower)
        yield from self._head()

    def _embedding(self) -> Iterator[TensorPlan]:
        if self.embedding is not None:
            tower = self._tower_of(self.embedding)
            yield from self._token_weight(self.embedding, tower, tower.slices[0], _stored_embedding)

    def _head(self) -> Iterator[TensorPlan]:
        if self.head is not None and not self.tied:
            tower = self._tower_of(self.head)
            with_head = (p for p in reversed(tower.slices) if _inputs_of(p, _stored_head))
            part = next(with_head, tower.slices[-1])
            yield from self._token_weight(self.head, tower, part, _stored_head)

    def _token_weight(
        self, name: str, tower: TowerPlan, part: Slice, of: Callable[[Model], str | None]
    ) -> Iterator[TensorPlan]:
        inputs = _inputs_of(part, of)
        if inputs:
            yield self._plan(TensorSources.outside(name, part, inputs), tower)

    def _outside_layers(self, wanted: TensorSources, tower: TowerPlan) -> TensorPlan:
        """A weight outside the layers; a copy of the embedding is merged like the embedding.

        If only some models store it separately, the others' embedding is used for it.
        """
        part, present = wanted.slice, dict(zip(wanted.positions, wanted.names, strict=True))
        shape = part.sources[wanted.positions[0]].model.shape(wanted.names[0])
        layers = tower.tower.layers
        if has_part_per_layer(wanted.name, shape, layers) and not tower.is_unchanged:
            wanted = gather_parts(wanted, tower.slices)
            return self._plan(wanted, tower)
        models = [source.model for source in part.sources]
        is_embedding_copy = any(
            name in models[i].tokens.equal_weights for i, name in present.items()
        )
        if not is_embedding_copy or self.embedding is None:
            return self._plan(wanted, tower)
        inputs = []
        same = True
        for position, model in enumerate(models):
            name = present.get(position)
            if name is None or name in model.tokens.equal_weights:
                name = model.tokens.embedding
            else:
                same = False
            if name is not None:
                inputs.append((position, name))
        if not same:
            return self._plan(TensorSources.outside(wanted.name, part, inputs), tower)
        plan = self._plan(TensorSources.outside(self.embedding, part, inputs), tower)
        return replace(plan, name=wanted.name, same_as=self.embedding)

    def _plan_layer(self, wanted: LayerTensors, tower: TowerPlan) -> Iterator[TensorPlan]:
        if tower.is_copied:
            return (self._plan(each, tower) for each in wanted)
        return self._rules_of(wanted.slice, tower).plan_layer(wanted)

    def _plan(self, wanted: TensorSources, tower: TowerPlan) -> TensorPlan:
        if tower.is_copied:
            return copy_tensor(wanted, "'modules' says nothing about it")
        return self._rules_of(wanted.slice, tower).plan(wanted)

    @cached_property
    def _rules(self) -> dict[tuple[int, int], SliceRules]:
        """Rules by the `id` of slice and tower."""
        return {
            (id(part), id(tower)): self._new_rules(part, tower)
            for tower in self.towers
            for part in tower.slices
        }

    def _rules_of(self, part: Slice, tower: TowerPlan) -> SliceRules:
        return self._rules.get((id(part), id(tower))) or self._new_rules(part, tower)

    def _new_rules(self, part: Slice, tower: TowerPlan) -> SliceRules:
        levels = slice_levels(part.entry, tower.module, self.document)
        return SliceRules(part, self.rules, levels)

    def _tower_of(self, name: str) -> TowerPlan:
        """The tower to which the embedding or head belongs."""
        towers = (plan for plan in self.towers if name in (*plan.tower.before, *plan.tower.after))
        return next(towers, self.towers[0])

    @property
    def models(self) -> list[Model]:
        """The models that provide weights, each once."""
        sources = (s for tower in self.towers for part in tower.slices for s in part.sources)
        return list({id(source.model): source.model for source in sources}.values())


def _inputs_of(part: Slice, of: Callable[[Model], str | None]) -> tuple[tuple[int, str], ...]:
    names = ((position, of(source.model)) for position, source in enumerate(part.sources))
    return tuple((position, name) for position, name in names if name is not None)


def _stored_embedding(model: Model) -> str | None:
    """The stored embedding of a model; a tied model may store it as its head."""
    tokens = model.tokens
    return tokens.embedding or (tokens.head if tokens.kind is Head.TIED else None)


def _stored_head(model: Model) -> str | None:
    """The output head of a model: the embedding if it is tied."""
    return _stored_embedding(model) if model.tokens.kind is Head.TIED else model.tokens.head
