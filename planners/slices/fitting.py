"""The models of one document with unified names, towers and parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.planners.config.model_reference import ModelReference
from mergeloom.planners.models.alignment import RenamedModel, aligned
from mergeloom.planners.models.architecture import Tower
from mergeloom.planners.models.model import Model
from mergeloom.planners.models.pool import Models


class Fitting:
    """The models of one document, with the tensor names of its base or first model.

    ``parts`` are the names of weights with a separate module, by module name.
    """

    def __init__(self, models: Models, donor: Model) -> None:
        self._models = models
        self._donor = donor
        self._fitted: dict[int, Model] = {}
        self._remapped: Mapping[int, Model] = {}
        self.parts: dict[str, frozenset[str]] = {}

    def tower(self, model: Model, tower: Tower) -> Tower:
        """The tower of ``model`` that corresponds to ``tower``.

        Raises:
            CheckpointError: it has none.
        """
        if tower.name in self.parts:
            return replace(tower, before=tuple(name for name in tower.before if name in model))
        own = next((t for t in model.architecture.towers if t.prefix == tower.prefix), None)
        if own is None:
            found = ", ".join(f"'{t.prefix}N'" for t in model.architecture.towers)
            raise CheckpointError(
                f"'{model.name}' has no layers '{tower.prefix}N', unlike the base or first model "
                f"'{self._donor.name}', but {found}",
                remedy="only models of one architecture can be merged; 'modules' merges a model "
                "that has only some of the parts",
            )
        apart = frozenset(name for part in self.parts.values() for name in part)
        return replace(
            own,
            before=tuple(name for name in own.before if name not in apart),
            after=tuple(name for name in own.after if name not in apart),
        )

    def get(self, reference: ModelReference) -> Model:
        """A model; raises like `Models.get`."""
        return self.fit(self._models.get(reference))

    def fit(self, model: Model) -> Model:
        """A model with the names of the base or first one and the output's vocabulary; cached per
        model."""
        found = self._fitted.get(id(model))
        if found is None:
            found = model if model is self._donor else aligned(model, self._donor)
            self._fitted[id(model)] = found
        return self._remapped.get(id(found), found)

    def remap(self, remapped: Mapping[int, Model]) -> None:
        """Replace models (by `id`) by those with the output's vocabulary."""
        self._remapped = remapped

    def renamed(self) -> Iterator[RenamedModel]:
        """The models whose stored tensors have other names."""
        return (model for model in self._fitted.values() if isinstance(model, RenamedModel))
