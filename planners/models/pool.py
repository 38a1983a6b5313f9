"""The models of a configuration, each opened once, by whatever name it is called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mergeloom.engine.base.errors import CheckpointError, ConfigError
from mergeloom.engine.base.suggest import nearest
from mergeloom.planners.config.model_reference import ModelReference
from mergeloom.planners.models.checkpoint import Checkpoint, open_checkpoint
from mergeloom.planners.models.model import Model, StagedModel, StoredModel
from mergeloom.planners.models.resolve import Found, Origin, Resolver


class Models:
    """Every model of a configuration, opened once.

    Two references that lead to one directory give one model, called as it was first.
    """

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._by_reference: dict[ModelReference, Model] = {}
        self._by_directory: dict[Path, StoredModel] = {}
        self._found: dict[str, Found] = {}
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
            model = self._by_reference[reference] = self._open(reference)
        return model

    def directory(self, reference: ModelReference) -> Path | None:
        """Where a model's tokenizer and other small files are; of a stage, those of its donor.

        Raises:
            CheckpointError: there is no such model.
        """
        stage = self.stages.get(str(reference))
        if stage is not None:
            return stage.directory
        return self._resolver.directory(self._resolver.settle(reference).model)

    def ignores_revision(self, reference: ModelReference) -> bool:
        """Whether a reference names a revision of a local directory, which has none."""
        settled = self._resolver.settle(reference)
        if str(reference) in self.stages or settled.model.revision is None:
            return False
        return self._resolver.find(settled.model).origin in (Origin.PATH, Origin.SEARCH)

    def _open(self, reference: ModelReference) -> StoredModel:
        settled = self._resolver.settle(reference)
        if settled.adapter is not None:
            raise ConfigError(
                f"'{reference}': adapters are not merged yet",
                remedy="merge the adapter into its model first and name the result",
            )
        try:
            found = self._resolver.find(settled.model)
        except CheckpointError as error:
            stage = nearest(settled.model.path, self.stages)
            if stage is None:
                raise
            remedy = f"did you mean the stage '{stage}'?"
            raise CheckpointError(error.cause, remedy=remedy) from error
        place = found.directory.resolve()
        model = self._by_directory.get(place)
        if model is None:
            model = StoredModel(str(reference), open_checkpoint(found.directory))
            self._by_directory[place] = model
            self._found[model.name] = found
        return model

    def stored_by_name(self) -> dict[str, Checkpoint]:
        """The checkpoints among the models that were asked for."""
        return {model.name: model.checkpoint for model in self._by_directory.values()}

    @property
    def found(self) -> Mapping[str, Found]:
        """Where the models that are stored were found, by name."""
        return self._found

    def donor_directory(self, donor: Model) -> Path | None:
        """Where the side files come from: the donor's directory; of a stage, its donor's."""
        if isinstance(donor, StagedModel):
            return donor.directory
        return donor.checkpoint.directory if isinstance(donor, StoredModel) else None
