"""Applies tokenizer settings to the models of one document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from mergeloom.engine.base.errors import LoomError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.storage.folder import Folder
from mergeloom.planners.config.model_reference import ModelReference
from mergeloom.planners.config.tokenizer import TokenizerSettings
from mergeloom.planners.models.model import Model
from mergeloom.planners.models.token_weights import Head
from mergeloom.planners.vocabulary.plan import Candidate, VocabularyPlan, plan_vocabulary
from mergeloom.planners.vocabulary.remapped_model import RemappedModel, SharedTables, table_rows
from mergeloom.planners.vocabulary.tokenizer import Tokenizer


class DocumentModels(Protocol):
    """The models of one document, with the names of its first model."""

    def get(self, reference: ModelReference) -> Model:
        """A model of the document."""
        ...


class Tokenizers(Protocol):
    """Finds models and their tokenizers."""

    def folder(self, reference: ModelReference) -> Folder | None:
        """The folder of a model; ``None`` for a stage without one."""
        ...

    def tokenizer(self, reference: ModelReference) -> Tokenizer | None:
        """The tokenizer of any model."""
        ...

    def get(self, reference: ModelReference) -> Model:
        """Any model, with its own names."""
        ...


@dataclass(frozen=True)
class RemappedModels:
    """A vocabulary, and the models that are changed for it, by the `id` of the original model."""

    vocabulary: VocabularyPlan
    models: Mapping[int, RemappedModel]


@dataclass(frozen=True)
class _FinderByFolder:
    models_of_document: DocumentModels
    models: Sequence[Model]
    references: Sequence[ModelReference]
    tokenizers: Tokenizers

    def position(self, reference: ModelReference) -> int | None:
        """The position of the model in the same folder, because one model may have several
        names."""
        same = next((each for each in self.references if self._same(each, reference)), None)
        if same is None:
            return None
        model = self.models_of_document.get(same)
        found = (number for number, each in enumerate(self.models) if each is model)
        return next(found, None)

    def _same(self, one: ModelReference, other: ModelReference) -> bool:
        if one == other or one.adapter is not None or other.adapter is not None:
            return one == other
        try:
            first, second = self.tokenizers.folder(one), self.tokenizers.folder(other)
        except LoomError:
            return False
        return first is not None and second is not None and first.identity == second.identity

    def tokenizer(self, reference: ModelReference) -> Tokenizer | None:
        return self.tokenizers.tokenizer(reference)


def remap_models(
    settings: TokenizerSettings,
    references: Sequence[ModelReference],
    models_of_document: DocumentModels,
    base: ModelReference | None,
    tokenizers: Tokenizers,
) -> RemappedModels:
    """Plan the vocabulary of a document, and remap its models; ``base`` is its base model.

    Raises:
        ConfigError: the settings name a missing model or token.
        CheckpointError: a tokenizer is malformed or not supported.
    """
    first: dict[int, tuple[Model, ModelReference]] = {}
    for reference in references:
        model = models_of_document.get(reference)
        if _number_of_rows(model) is not None:
            first.setdefault(id(model), (model, reference))
    if not first:
        raise settings.place.error(
            "no model of this merge has an embedding of tokens", "leave these settings out"
        )
    models = tuple(model for model, _ in first.values())
    candidates = [
        Candidate(model.name, tokenizers.tokenizer(reference), _number_of_rows(model) or 0)
        for model, reference in first.values()
    ]
    finder = _FinderByFolder(models_of_document, models, references, tokenizers)
    position = None if base is None else finder.position(base)
    vocabulary = plan_vocabulary(settings, candidates, position, finder)
    transplant = None
    if settings.transplant is not None and isinstance(settings.source, ModelReference):
        from mergeloom.planners.transplant.model_tokens import plan_transplant

        donor = tokenizers.get(settings.source) if settings.transplant.uses_donor_rows else None
        transplant = plan_transplant(
            settings.transplant,
            vocabulary.alignment,
            vocabulary.tokenizer,
            vocabulary.tokenizers,
            vocabulary.matches,
            donor,
        )
    tables = SharedTables(vocabulary.alignment, models, _separate_head(models), transplant)
    changed = {
        id(model): RemappedModel(tables, number)
        for number, model in enumerate(models)
        if vocabulary.alignment.is_rearranged(number)
    }
    return RemappedModels(vocabulary, changed)


def _number_of_rows(model: Model) -> int | None:
    main = model.tokens.embedding or model.tokens.head
    return None if main is None else table_rows(model, main)


def _separate_head(models: Sequence[Model]) -> str | None:
    """The name of the output head, unless every model ties it to the embedding."""
    return next((m.tokens.head for m in models if m.tokens.kind is Head.OWN), None)
