"""The models of one document, with the tensor names and towers of its base or first model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.planners.config.model_reference import ModelReference
from mergeloom.planners.models.architecture import Tower
from mergeloom.planners.models.differences import class_name
from mergeloom.planners.models.model import Model
from mergeloom.planners.models.pool import Models
from mergeloom.planners.models.renamed import RenamedModel, with_names_of


class UnifiedModels:
    """The models of one document, with the tensor names of its base or first model, ``donor``.

    ``parts`` are the names of weights that have a module of their own, by module name.
    """

    def __init__(self, models: Models, donor: Model) -> None:
        self._models = models
        self._donor = donor
        self._unified: dict[int, Model] = {}
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
            kind, wanted = (class_name(each.config) for each in (model, self._donor))
            differ = None not in (kind, wanted) and kind != wanted
            is_of, unlike = (f" is a {kind} and", f", a {wanted}") if differ else ("", "")
            raise CheckpointError(
                f"'{model.name}'{is_of} has the layers {found}, unlike the base or first model "
                f"'{self._donor.name}'{unlike}, which has '{tower.prefix}N'",
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
        """The model of a reference; raises as `Models.get`."""
        return self.unified(self._models.get(reference))

    def unified(self, model: Model) -> Model:
        """A model with the names of the base or first model and, once it is known, with the
        output's vocabulary."""
        found = self._unified.get(id(model))
        if found is None:
            found = model if model is self._donor else with_names_of(model, self._donor)
            self._unified[id(model)] = found
        return self._remapped.get(id(found), found)

    def set_remapped(self, remapped: Mapping[int, Model]) -> None:
        """Replace models (by `id`) by those with the output's vocabulary."""
        self._remapped = remapped

    def renamed(self) -> Iterator[RenamedModel]:
        """The models whose stored tensors have other names."""
        return (model for model in self._unified.values() if isinstance(model, RenamedModel))
