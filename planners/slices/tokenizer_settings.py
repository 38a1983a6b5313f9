"""Tokenizer settings of a configuration: understood so far where they change nothing.

They change nothing where all models share one vocabulary and every embedding has a row for each
token and no more. Whatever else they ask for is refused, in so many words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mergeloom.engine.base.errors import CheckpointError, LoomError
from mergeloom.engine.base.suggest import nearest
from mergeloom.planners.config.config import Document
from mergeloom.planners.config.model_reference import ModelReference
from mergeloom.planners.config.tokenizer import TokenizerSettings
from mergeloom.planners.models.model import Model, StagedModel, StoredModel
from mergeloom.planners.models.pool import Models
from mergeloom.planners.models.small_files import check_inside, read_json
from mergeloom.planners.vocabulary.tokens import read_content, vocabulary


def check_tokenizer_settings(
    document: Document, models: Sequence[Model], pool: Models, embedding: str | None
) -> None:
    """Check the settings of ``document``; ``embedding`` is the token embedding's name.

    Raises:
        ConfigError: they name no model, or would change something.
        CheckpointError: a tokenizer's file cannot be understood.
    """
    settings = document.tokenizer
    if settings is not None:
        place = settings.place
        if settings.tokens:
            raise place.error("'tokens' of tokenizer settings is not carried out yet")
        try:
            reason = _change(settings, models, pool, embedding)
        except LoomError as error:
            raise error.at(place) from error
        if reason is not None:
            raise place.error(
                f"tokenizer settings are not carried out yet, and here they would change the "
                f"output: {reason}"
            )
    setting = document.chat_template
    if setting is not None and (setting.content != "auto" or len(_templates(models)) > 1):
        raise setting.error(
            "chat templates are not chosen yet: leave 'chat_template' out, and that of the base or "
            "first model is copied"
        )


def _change(
    settings: TokenizerSettings, models: Sequence[Model], pool: Models, embedding: str | None
) -> str | None:
    """What tokenizer settings would change; ``None`` if nothing."""
    first: dict[str, int] | None = None
    for model in models:
        directory = _directory(model)
        found = vocabulary(directory) if directory is not None else None
        if found is None:
            return f"the files of '{model.name}' do not tell its tokens"
        first = found if first is None else first
        if found != first:
            return f"'{models[0].name}' and '{model.name}' have different vocabularies"
        if embedding is not None and embedding in model:
            rows, needed = model.shape(embedding)[0], max(found.values(), default=-1) + 1
            if rows != needed:
                return f"the embedding of '{model.name}' has {rows} rows for {needed} tokens"
            multiple = settings.pad_to_multiple_of
            if multiple is not None and rows % multiple:
                return f"{rows} rows of the embedding are no multiple of {multiple}"
    if isinstance(settings.source, ModelReference):
        directory = _source(settings.source, models, pool)
        if directory is None or vocabulary(directory) != first:
            return f"'{settings.source}' has another vocabulary than the models"
    return None


def _source(reference: ModelReference, models: Sequence[Model], pool: Models) -> Path | None:
    """Where the model is whose tokenizer is asked for; it need not be one of those merged."""
    try:
        return pool.directory(reference)
    except CheckpointError as error:
        near = nearest(str(reference), ["union", "base", *(model.name for model in models)])
        raise CheckpointError(
            f"'{reference}' is neither 'union', 'base' nor a model that is there ({error.cause})",
            remedy=f"did you mean '{near}'?" if near is not None else error.remedy,
        ) from error


def _directory(model: Model) -> Path | None:
    if isinstance(model, StagedModel):
        return model.directory
    return model.checkpoint.directory if isinstance(model, StoredModel) else None


def _templates(models: Sequence[Model]) -> set[str | None]:
    """The chat templates of the models, unread; ``None`` for having none."""
    directories = (_directory(model) for model in models)
    return {None if directory is None else _template(directory) for directory in directories}


def _template(directory: Path) -> str | None:
    plain, settings = directory / "chat_template.jinja", directory / "tokenizer_config.json"
    for path in (plain, settings):
        check_inside(directory, path.name)
    if plain.is_file():
        return read_content(plain).decode("utf-8", "replace")
    found = read_json(settings).get("chat_template") if settings.is_file() else None
    return None if found is None else str(found)
