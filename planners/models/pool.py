"""The models of a configuration. Each is opened once, however many references name it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.folder import Folder, LocalFolder, local
from mergeloom.engine.storage.safetensors import HeaderReader
from mergeloom.planners.config.model_reference import Location, ModelReference
from mergeloom.planners.models.adapted import AdaptedModel, apply_adapter
from mergeloom.planners.models.adapter import Adapter, is_adapter, open_adapter
from mergeloom.planners.models.architecture import ArchitectureCache
from mergeloom.planners.models.checkpoint import Checkpoint, open_checkpoint, open_weights
from mergeloom.planners.models.dequantised import stored_model
from mergeloom.planners.models.gguf.folder import GgufFolder, is_gguf
from mergeloom.planners.models.model import Model, PlannedModel, StoredModel
from mergeloom.planners.models.pipeline import is_pipeline, open_pipeline
from mergeloom.planners.models.resolve import (
    FoundIn,
    FoundModel,
    Resolver,
    has_adapter_at,
    with_stages,
)
from mergeloom.planners.vocabulary.chat_template import template_of
from mergeloom.planners.vocabulary.remapped_model import RemappedModel
from mergeloom.planners.vocabulary.tokenizer import Tokenizer, read_tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""Files that identify a tokenizer."""


class Models:
    """Opens the models of a configuration.

    References to the same directory give one model, which has the name that was used first.
    """

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._headers = HeaderReader()
        self._architectures = ArchitectureCache()
        self._by_reference: dict[ModelReference, Model] = {}
        self._by_directory: dict[str, StoredModel] = {}
        self._adapters: dict[str, Adapter] = {}
        self._adapted: dict[tuple[int, int], Model] = {}
        self._folders: dict[str, Folder] = {}
        self._found: dict[str, FoundModel] = {}
        self._found_adapters: dict[str, FoundModel] = {}
        self._tokenizers: dict[str, Tokenizer | None] = {}
        self.notes: dict[ModelReference, str] = {}
        """How a reference was interpreted, if that is not obvious."""
        self.stages: dict[str, PlannedModel] = {}
        self.used_stages: set[str] = set()

    def get(self, reference: ModelReference) -> Model:
        """A model, or the output of an earlier stage.

        Raises:
            ConfigError: it is not available, or the reference is not supported.
            CheckpointError: it is malformed.
        """
        if str(reference) in self.stages:
            self.used_stages.add(str(reference))
            return self.stages[str(reference)]
        model = self._by_reference.get(reference)
        if model is None:
            model = self._by_reference[reference] = self._open(reference)
        return model

    def weights(self, reference: ModelReference) -> Model:
        """Weights from a file, or from a directory regardless of its other files; or the output of
        an earlier stage.

        Raises:
            CheckpointError: they are not found, or malformed.
        """
        if str(reference) in self.stages:
            return self.get(reference)
        model = self._by_reference.get(reference)
        if model is None:
            path = self._resolver.weights(str(reference))
            folder = local(path)
            place = folder.identity
            if place not in self._by_directory:
                how = open_pipeline if is_pipeline(folder) else open_weights
                checkpoint = how(folder, self._headers)
                self._by_directory[place] = stored_model(
                    str(reference), checkpoint, self._architectures
                )
                self._found[str(reference)] = FoundModel(path, FoundIn.PATH)
            model = self._by_reference[reference] = self._by_directory[place]
        return model

    def folder(self, reference: ModelReference) -> Folder | None:
        """The folder of a model's tokenizer and other small files; for a stage, its donor's.

        Raises:
            CheckpointError: there is no such model.
        """
        stage = self.stages.get(str(reference))
        if stage is not None:
            return stage.folder
        return self._folder(self._resolver.directory(self._resolver.interpret(reference).model))

    def _folder(self, place: Path) -> Folder:
        """The folder of the model at a path."""
        here = local(place)
        key = here.identity
        if key not in self._folders:
            self._folders[key] = GgufFolder.at(here) if is_gguf(here) else here
        return self._folders[key]

    def tokenizer(self, reference: ModelReference) -> Tokenizer | None:
        """The tokenizer of a model; ``None`` if it has none. No other files of the model are
        needed.

        Raises:
            CheckpointError: there is no such model, or its tokenizer is not supported.
        """
        stage = self.stages.get(str(reference))
        if stage is not None:
            return stage.tokenizer()
        for folder in self._tokenizer_folders(reference):
            key = folder.identity
            if key not in self._tokenizers:
                self._tokenizers[key] = self._sharing_tokens(read_tokenizer(folder))
            found = self._tokenizers[key]
            if found is not None:
                return found
        return None

    def _sharing_tokens(self, tokenizer: Tokenizer | None) -> Tokenizer | None:
        """The tokenizer, sharing the memory of its tokens with an equal one, as fine-tunes have."""
        others = (other for other in self._tokenizers.values() if other is not None)
        for other in others if tokenizer is not None else ():
            if tokenizer is not None and other.ids == tokenizer.ids:
                return replace(tokenizer, ids=other.ids)
        return tokenizer

    def template(self, reference: ModelReference) -> str | None:
        """The chat template of a model; ``None`` if it has none. Raises as `tokenizer`."""
        stage = self.stages.get(str(reference))
        if stage is not None:
            found = stage.tokenizer()
            if found is not None and found.template is not None:
                return found.template
            return None if found is None else template_of(found.folder)
        templates = map(template_of, self._tokenizer_folders(reference))
        return next((template for template in templates if template is not None), None)

    def _tokenizer_folders(self, reference: ModelReference) -> Iterator[Folder]:
        """Folders that may contain a model's tokenizer, the adapter's own first."""
        model = self._by_reference.get(reference)
        while isinstance(model, AdaptedModel):
            yield model.adapter.checkpoint.folder
            model = model.base
        if isinstance(model, StoredModel):
            yield model.checkpoint.folder
        elif isinstance(model, PlannedModel):
            if model.folder is not None:
                yield model.folder
        else:
            location = self._resolver.interpret(reference).model
            yield self._folder(self._resolver.directory(location))

    def ignores_revision(self, reference: ModelReference) -> bool:
        """Whether a reference has a revision although it names a local directory, which has
        none."""
        reading = self._resolver.interpret(reference)
        if str(reference) in self.stages or reading.model.revision is None:
            return False
        return self._resolver.find(reading.model).origin in (FoundIn.PATH, FoundIn.SEARCH)

    def namesakes(self, reference: ModelReference) -> tuple[Path, tuple[Path, ...]] | None:
        """The directory of a model and other models that its path can mean as well; ``None`` if
        there are none."""
        if str(reference) in self.stages:
            return None
        location = self._resolver.interpret(reference).model
        others = self._resolver.others(location)
        return (self._resolver.directory(location), others) if others else None

    def _open(self, reference: ModelReference) -> Model:
        reading = self._resolver.interpret(reference)
        if reading.adapter is not None:
            base = self.get(replace(reading, adapter=None))
            return self._adapted_model(str(reference), base, self.adapter(reading.adapter))
        try:
            found = self._resolver.find(reading.model)
        except CheckpointError as error:
            raise with_stages(error, reading.model, self.stages.keys()) from error
        if is_adapter(LocalFolder(found.directory)):
            return self._adapter_as_model(reference, reading)
        place = local(found.directory).identity
        model = self._by_directory.get(place)
        if model is None:
            checkpoint = open_checkpoint(self._folder(found.directory), self._headers)
            model = stored_model(str(reference), checkpoint, self._architectures)
            self._by_directory[place] = model
            self._found[model.name] = found
        return model

    def adapter(self, location: Location) -> Adapter:
        """An adapter by itself, opened once.

        Raises:
            CheckpointError: there is none, or its kind is not supported.
        """
        found = self._resolver.find(location, has_adapter_at)
        folder = LocalFolder(found.directory)
        adapter = self._adapters.get(folder.identity)
        if adapter is None:
            self._found_adapters[str(location)] = found
            adapter = open_adapter(str(location), folder)
            self._adapters[folder.identity] = adapter
        return adapter

    def _adapted_model(self, name: str, base: Model, adapter: Adapter) -> Model:
        """A model with an adapter applied; made once for each pair."""
        key = id(base), id(adapter)  # both stay alive in this pool
        model = self._adapted.get(key)
        if model is None:
            model = self._adapted[key] = apply_adapter(name, base, adapter)
        return model

    def _adapter_as_model(self, written: ModelReference, reference: ModelReference) -> Model:
        """The model of an adapter that is given as a model: the one it was made for, with the
        adapter."""
        adapter = self.adapter(reference.model)
        if adapter.base is None:
            raise CheckpointError(
                f"'{reference}' is an adapter that does not name its base model",
                remedy=f"write MODEL+{reference.model}",
            )
        base = Location(adapter.base, adapter.base_revision)
        self.notes[written] = (
            f"'{reference}' is an adapter: it is merged into '{base}', which it was made for"
        )
        try:
            return self._adapted_model(str(reference), self.get(ModelReference(base)), adapter)
        except CheckpointError as error:
            raise CheckpointError(
                f"'{reference}' is an adapter for '{base}': {error.cause}", remedy=error.remedy
            ) from error

    def stored_by_name(self) -> dict[str, Checkpoint]:
        """The checkpoints of all opened models, including adapters."""
        models = {model.name: model.checkpoint for model in self._by_directory.values()}
        return models | {item.name: item.checkpoint for item in self._adapters.values()}

    @property
    def found(self) -> Mapping[str, FoundModel]:
        """Locations of the stored models, by name."""
        return self._found

    @property
    def adapters(self) -> Mapping[str, FoundModel]:
        """Locations of the adapters, by name."""
        return self._found_adapters

    def tokenizer_folder(self, donor: Model) -> Folder | None:
        """The folder of the tokenizer files: that of an adapter, if it has any, or else the
        donor's."""
        model = donor
        while isinstance(model, (AdaptedModel, RemappedModel)):
            if isinstance(model, AdaptedModel):
                folder = model.adapter.checkpoint.folder
                if any(folder.has(name) for name in TOKENIZER_FILES):
                    return folder
                model = model.base
            else:
                model = model.model
        return self.donor_folder(donor)

    @property
    def folders(self) -> Mapping[str, Folder]:
        """Folders of the stored models, by name."""
        return {model.name: model.checkpoint.folder for model in self._by_directory.values()}

    def donor_folder(self, donor: Model) -> Folder | None:
        """The folder of side files: the donor's or, if that is a stage, the folder of the stage's
        donor."""
        if isinstance(donor, PlannedModel):
            return donor.folder
        if isinstance(donor, AdaptedModel):
            return self.donor_folder(donor.base)
        if isinstance(donor, RemappedModel):
            return self.donor_folder(donor.model)
        return donor.checkpoint.folder if isinstance(donor, StoredModel) else None
