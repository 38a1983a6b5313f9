"""Tokenizer settings of a configuration: understood so far where they change nothing.

They change nothing where all models share one vocabulary and every embedding has a row for each
token and no more. Whatever else they ask for is refused, in so many words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mergeloom.planners.config.config import Document
from mergeloom.planners.config.yaml_values import Value, nearest
from mergeloom.planners.models.checkpoint import check_inside, read_json
from mergeloom.planners.models.model import Model, StoredModel
from mergeloom.planners.vocabulary.tokens import read_content, vocabulary

_KEYS = ("source", "tokens", "pad_to_multiple_of")


def check_tokenizer_settings(
    document: Document, models: Sequence[Model], embedding: str | None
) -> None:
    """Check the settings of ``document``; ``embedding`` is the token embedding's name.

    Raises:
        ConfigError: they name no model, or would change something.
        CheckpointError: a tokenizer's file cannot be understood.
    """
    if document.tokenizer is not None:
        _check_source(document.tokenizer, [str(each.model) for each in document.references()])
        reason = _change(models, embedding)
        if reason is not None:
            raise document.tokenizer.error(
                f"tokenizer settings are not carried out yet, and here they would change the "
                f"output: {reason}"
            )
    setting = document.chat_template
    if setting is not None and (setting.content != "auto" or len(_templates(models)) > 1):
        raise setting.error(
            "chat templates are not chosen yet: leave 'chat_template' out, and that of the base or "
            "first model is copied"
        )


def _check_source(setting: Value, models: Sequence[str]) -> None:
    source = setting
    if isinstance(setting.content, dict):
        keys: Mapping[str, Value] = setting.content
        for key, value in keys.items():
            if key not in _KEYS:
                raise value.error(f"unknown key {key!r}{nearest(key, _KEYS)}")
            if key != "source" and value.content is not None:
                raise value.error(f"'{key}' of tokenizer settings is not carried out yet")
        if "source" not in keys:
            return
        source = keys["source"]
    name = source.text("the source of the tokenizer")
    if name not in {"union", "base", *models}:
        known = nearest(name, ["union", "base", *models])
        raise source.error(f"'{name}' is neither 'union', 'base' nor a model of this merge{known}")


def _change(models: Sequence[Model], embedding: str | None) -> str | None:
    """What tokenizer settings would change; ``None`` if nothing."""
    first: dict[str, int] | None = None
    for model in models:
        if not isinstance(model, StoredModel):
            return f"'{model.name}' is made by an earlier stage"
        found = vocabulary(model.checkpoint.directory)
        if found is None:
            return f"the files of '{model.name}' do not tell its tokens"
        first = found if first is None else first
        if found != first:
            return f"'{models[0].name}' and '{model.name}' have different vocabularies"
        if embedding is not None and embedding in model:
            rows, needed = model.shape(embedding)[0], max(found.values(), default=-1) + 1
            if rows != needed:
                return f"the embedding of '{model.name}' has {rows} rows for {needed} tokens"
    return None


def _templates(models: Sequence[Model]) -> set[str | None]:
    """The chat templates of the models, unread; ``None`` for having none."""
    return {
        _template(model.checkpoint.directory) if isinstance(model, StoredModel) else None
        for model in models
    }


def _template(directory: Path) -> str | None:
    plain, settings = directory / "chat_template.jinja", directory / "tokenizer_config.json"
    for path in (plain, settings):
        check_inside(directory, path.name)
    if plain.is_file():
        return read_content(plain).decode("utf-8", "replace")
    found = read_json(settings).get("chat_template") if settings.is_file() else None
    return None if found is None else str(found)
