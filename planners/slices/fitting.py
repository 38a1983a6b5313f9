"""The models of one document, made to fit each other: names, towers, parts."""

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
    """The models of one document, under the names that its base or first model gives tensors.

    ``parts`` are the names of weights that have a module of their own, by the module's name.
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
                f"'{model.name}' has no layers named '{tower.prefix}N' as the base or first model "
                f"'{self._donor.name}' has, but {found}",
                remedy="only models of one architecture can be merged; one that has some of the "
                "parts only is merged into those by 'modules'",
            )
        apart = frozenset(name for part in self.parts.values() for name in part)
        return replace(
            own,
            before=tuple(name for name in own.before if name not in apart),
            after=tuple(name for name in own.after if name not in apart),
        )

    def get(self, reference: ModelReference) -> Model:
        """A model; errors as of `Models.get`."""
        return self.fit(self._models.get(reference))

    def fit(self, model: Model) -> Model:
        """A model under the names that the base or first one has, and with the output's vocabulary;
        one model gives one."""
        found = self._fitted.get(id(model))
        if found is None:
            found = model if model is self._donor else aligned(model, self._donor)
            self._fitted[id(model)] = found
        return self._remapped.get(id(found), found)

    def remap(self, remapped: Mapping[int, Model]) -> None:
        """Put models with the output's vocabulary in the place of others, given by identity."""
        self._remapped = remapped

    def renamed(self) -> Iterator[RenamedModel]:
        """Those that store their tensors under other names."""
        return (model for model in self._fitted.values() if isinstance(model, RenamedModel))
