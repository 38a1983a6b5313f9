"""A planned document: its towers, and how each tensor of the output comes about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from mergeloom.planners.config.config import Document, Module
from mergeloom.planners.models.architecture import Tower
from mergeloom.planners.models.model import Model
from mergeloom.planners.models.roles import follows_depth
from mergeloom.planners.models.token_weights import Head
from mergeloom.planners.slices.by_layer import gather
from mergeloom.planners.slices.doubts import slice_levels
from mergeloom.planners.slices.slices import (
    Recipe,
    Slice,
    recipes,
)
from mergeloom.planners.slices.tensor_plan import (
    MergingRules,
    SliceParameters,
    TensorPlan,
    copy_tensor,
    plan_tensor,
)
from mergeloom.planners.vocabulary.decide import VocabularyPlan


@dataclass(frozen=True, slots=True)
class TowerPlan:
    """One tower of the output and the slices that it is stacked from.

    ``copied`` where nothing says what it is made of, and it is the base or first model's.
    """

    tower: Tower
    slices: tuple[Slice, ...]
    module: Module
    copied: bool = False

    @property
    def layers(self) -> int:
        return sum(part.length for part in self.slices)

    @property
    def unchanged(self) -> bool:
        """Whether every layer of the output stands where it stands in all that it is made of."""
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

    ``embedding`` and ``head`` are the names in the output, ``tied`` whether they are one weight.
    ``vocabulary`` is what tokenizer settings ask for, while planning.
    ``notes`` say what was understood where it may not be evident.
    """

    document: Document
    rules: MergingRules
    towers: tuple[TowerPlan, ...]
    donor: Model
    tied: bool
    embedding: str | None
    head: str | None
    vocabulary: VocabularyPlan | None
    notes: tuple[str, ...] = ()

    def tensor_plans(self) -> Iterator[TensorPlan]:
        """How each tensor of the output comes about, in order."""
        tokens = [model.tokens for model in self.models]
        apart = {name for found in tokens for name in (found.embedding, found.head)}
        yield from self._embedding()
        for tower in self.towers:
            for recipe in recipes(tower.tower, tower.slices):
                if recipe.layer is not None:
                    yield self._plan(recipe, recipe.inputs, tower)
                elif recipe.name not in apart:
                    yield self._around(recipe, tower)
        yield from self._head()

    def _embedding(self) -> Iterator[TensorPlan]:
        if self.embedding is not None:
            tower = self._home(self.embedding)
            yield from self._tokens(self.embedding, tower, tower.slices[0], _embedding_of)

    def _head(self) -> Iterator[TensorPlan]:
        if self.head is not None and not self.tied:
            tower = self._home(self.head)
            able = (p for p in reversed(tower.slices) if _inputs(p, _head_of))
            part = next(able, tower.slices[-1])
            yield from self._tokens(self.head, tower, part, _head_of)

    def _tokens(
        self, name: str, tower: TowerPlan, part: Slice, of: Callable[[Model], str | None]
    ) -> Iterator[TensorPlan]:
        inputs = _inputs(part, of)
        if inputs:
            yield self._plan(Recipe(name, part, None, 0.0, inputs), inputs, tower)

    def _around(self, recipe: Recipe, tower: TowerPlan) -> TensorPlan:
        """A weight outside the layers; one that is the embedding once more is merged as that is.

        Where only some models store it apart, the others' embedding stands in for it.
        """
        shape = recipe.slice.sources[recipe.inputs[0][0]].model.shape(recipe.inputs[0][1])
        layers = tower.tower.layers
        if follows_depth(recipe.name, shape, layers) and not tower.unchanged:
            recipe = gather(recipe, tower.slices)
            return self._plan(recipe, recipe.inputs, tower)
        part, present = recipe.slice, dict(recipe.inputs)
        models = [source.model for source in part.sources]
        twin = any(name in models[i].tokens.twins for i, name in present.items())
        if not twin or self.embedding is None:
            return self._plan(recipe, recipe.inputs, tower)
        inputs = []
        same = True
        for position, model in enumerate(models):
            name = present.get(position)
            if name is None or name in model.tokens.twins:
                name = model.tokens.embedding
            else:
                same = False
            if name is not None:
                inputs.append((position, name))
        if not same:
            return self._plan(recipe, inputs, tower)
        plan = self._plan(replace(recipe, name=self.embedding), inputs, tower)
        return replace(plan, name=recipe.name, same_as=self.embedding)

    def _plan(
        self, recipe: Recipe, inputs: Sequence[tuple[int, str]], tower: TowerPlan
    ) -> TensorPlan:
        if tower.copied:
            return copy_tensor(recipe, inputs, "'modules' says nothing about it")
        found = self._parameters.get((id(recipe.slice), id(tower)))
        parameters = found or self._parameters_of(recipe.slice, tower)
        return plan_tensor(recipe, inputs, self.rules, parameters)

    @cached_property
    def _parameters(self) -> dict[tuple[int, int], SliceParameters]:
        """By the `id` of a slice and of its tower."""
        return {
            (id(part), id(tower)): self._parameters_of(part, tower)
            for tower in self.towers
            for part in tower.slices
        }

    def _parameters_of(self, part: Slice, tower: TowerPlan) -> SliceParameters:
        levels = slice_levels(part, tower.module, self.document)
        return SliceParameters.of(part, self.rules.method, levels)

    def _home(self, name: str) -> TowerPlan:
        """The tower that the embedding or the head belongs to."""
        homes = (plan for plan in self.towers if name in (*plan.tower.before, *plan.tower.after))
        return next(homes, self.towers[0])

    @property
    def models(self) -> list[Model]:
        """The models that weights come from, each once."""
        sources = (s for tower in self.towers for part in tower.slices for s in part.sources)
        return list({id(source.model): source.model for source in sources}.values())


def _inputs(part: Slice, of: Callable[[Model], str | None]) -> tuple[tuple[int, str], ...]:
    names = ((position, of(source.model)) for position, source in enumerate(part.sources))
    return tuple((position, name) for position, name in names if name is not None)


def _embedding_of(model: Model) -> str | None:
    """What a model's tokens are embedded by: a tied one may have stored it as its head."""
    tokens = model.tokens
    return tokens.embedding or (tokens.head if tokens.kind is Head.TIED else None)


def _head_of(model: Model) -> str | None:
    """What makes a model's words: the embedding, where it is tied."""
    return _embedding_of(model) if model.tokens.kind is Head.TIED else model.tokens.head
