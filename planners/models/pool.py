"""The models of a configuration, each opened once."""

from __future__ import annotations

from pathlib import Path

from mergeloom.engine.base.errors import ConfigError
from mergeloom.planners.config.model_reference import ModelReference
from mergeloom.planners.models.checkpoint import Checkpoint, open_checkpoint
from mergeloom.planners.models.model import Model, StagedModel, StoredModel
from mergeloom.planners.models.resolve import Resolver


class Models:
    """Every model of a configuration, opened once."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._by_reference: dict[ModelReference, Model] = {}
        self._by_directory: dict[Path, Checkpoint] = {}
        self.stages: dict[str, StagedModel] = {}
        self.used_stages: set[str] = set()

    def get(self, reference: ModelReference) -> Model:
        """A model, or the output of an earlier stage.

        Raises:
            ConfigError: it is not to be had, or the reference means what is not supported.
            CheckpointError: it is malformed.
        """
        if str(reference) in self.stages:
            self.used_stages.add(str(reference))
            return self.stages[str(reference)]
        model = self._by_reference.get(reference)
        if model is None:
            if reference.adapter is not None:
                raise ConfigError(
                    f"'{reference}': adapters are not merged yet: "
                    "merge the adapter into its model first and name the result"
                )
            directory = self._resolver.directory(reference.model)
            checkpoint = self._by_directory.get(directory.resolve())
            if checkpoint is None:
                checkpoint = open_checkpoint(directory)
                self._by_directory[directory.resolve()] = checkpoint
            model = self._by_reference[reference] = StoredModel(str(reference), checkpoint)
        return model

    def stored_by_name(self) -> dict[str, Checkpoint]:
        """The checkpoints among the models that were asked for."""
        return {
            model.name: model.checkpoint
            for model in self._by_reference.values()
            if isinstance(model, StoredModel)
        }

    def donor_directory(self, donor: Model) -> Path | None:
        """Where the side files come from: the donor, or the first model if a stage is the donor."""
        candidates = [donor, *self._by_reference.values()]
        return next(
            (m.checkpoint.directory for m in candidates if isinstance(m, StoredModel)), None
        )
