"""Tokenizer settings applied to the models of one merge."""

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
from mergeloom.planners.vocabulary.decide import Candidate, VocabularyPlan, decide
from mergeloom.planners.vocabulary.remapped import RemappedModel, Tables, table_rows
from mergeloom.planners.vocabulary.tokenizer import Tokenizer


class View(Protocol):
    """The models of one document as its merge takes them."""

    def get(self, reference: ModelReference) -> Model:
        """A model of the document."""
        ...


class Tokenizers(Protocol):
    """Where tokenizers of models are found."""

    def folder(self, reference: ModelReference) -> Folder | None:
        """The folder of a model, ``None`` for a stage without one."""
        ...

    def tokenizer(self, reference: ModelReference) -> Tokenizer | None:
        """The tokenizer of any model."""
        ...

    def get(self, reference: ModelReference) -> Model:
        """Any model, as it is."""
        ...


@dataclass(frozen=True)
class Remapped:
    """A vocabulary, and the models that are changed for it, by the identity of what they were."""

    vocabulary: VocabularyPlan
    models: Mapping[int, RemappedModel]


@dataclass(frozen=True)
class _Finder:
    view: View
    models: Sequence[Model]
    references: Sequence[ModelReference]
    tokenizers: Tokenizers

    def position(self, reference: ModelReference) -> int | None:
        """By what it is, not by how it is called: one model may have several names."""
        same = next((each for each in self.references if self._same(each, reference)), None)
        if same is None:
            return None
        model = self.view.get(same)
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


def remapped(
    settings: TokenizerSettings,
    references: Sequence[ModelReference],
    view: View,
    base: ModelReference | None,
    tokenizers: Tokenizers,
) -> Remapped:
    """The models of a document as ``settings`` want them; ``base`` is its base model.

    Raises:
        ConfigError: the settings name what is not there.
        CheckpointError: a tokenizer cannot be understood.
    """
    first: dict[int, tuple[Model, ModelReference]] = {}
    for reference in references:
        model = view.get(reference)
        if _rows(model) is not None:
            first.setdefault(id(model), (model, reference))
    if not first:
        raise settings.place.error("no model of this merge has an embedding of tokens")
    models = tuple(model for model, _ in first.values())
    candidates = [
        Candidate(model.name, tokenizers.tokenizer(reference), _rows(model) or 0)
        for model, reference in first.values()
    ]
    finder = _Finder(view, models, references, tokenizers)
    position = None if base is None else finder.position(base)
    vocabulary = decide(settings, candidates, position, finder)
    graft = None
    if settings.transplant is not None and isinstance(settings.source, ModelReference):
        from mergeloom.planners.transplant.words import graft_of

        donor = tokenizers.get(settings.source) if settings.transplant.compares else None
        graft = graft_of(
            settings.transplant,
            vocabulary.alignment,
            vocabulary.tokenizer,
            vocabulary.tokenizers,
            vocabulary.matches,
            donor,
        )
    tables = Tables(vocabulary.alignment, models, _own_head(models), graft)
    changed = {
        id(model): RemappedModel(tables, number)
        for number, model in enumerate(models)
        if vocabulary.alignment.changes(number)
    }
    return Remapped(vocabulary, changed)


def _rows(model: Model) -> int | None:
    main = model.tokens.embedding or model.tokens.head
    return None if main is None else table_rows(model, main)


def _own_head(models: Sequence[Model]) -> str | None:
    """The head's name, where it is not the embedding in all of the models."""
    return next((m.tokens.head for m in models if m.tokens.kind is Head.OWN), None)
