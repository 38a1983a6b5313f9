"""The tokenizer and the chat template of a planned document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergeloom.planners.config.config import Document
from mergeloom.planners.models.model import Model, StagedModel
from mergeloom.planners.models.pool import Models
from mergeloom.planners.slices.document import donor_reference
from mergeloom.planners.slices.stage import Stage
from mergeloom.planners.vocabulary.chat_template import choose
from mergeloom.planners.vocabulary.output import Followed, TokenizerFiles, tokenizer_files
from mergeloom.planners.vocabulary.remapped import RemappedModel, table_rows
from mergeloom.planners.vocabulary.tokenizer import Tokenizer


def stage_tokenizer(stage: Stage, models: Models, folder: Path | None) -> Tokenizer | None:
    """The tokenizer of a document's output, to be used by a later one; ``folder`` is the
    configuration's.

    Raises:
        CheckpointError: it cannot be understood.
    """
    if stage.vocabulary is not None:
        found: Tokenizer | None = stage.vocabulary.tokenizer
    else:
        found = models.tokenizer(donor_reference(stage.document))
    template = _template(stage.document, models, folder)
    return found if found is None or template is None else replace(found, template=template)


def has_own_words(stage: Stage) -> bool:
    """Whether an output has another tokenizer or chat template than its donor's files."""
    document, donor = stage.document, stage.donor
    before = isinstance(donor, StagedModel) and donor.own_words
    return before or document.tokenizer is not None or document.chat_template is not None


def output_files(stage: Stage, models: Models, folder: Path | None) -> TokenizerFiles:
    """The tokenizer's files of the output that the last document makes.

    Raises:
        ConfigError: its chat template is none.
        CheckpointError: a tokenizer cannot be understood.
    """
    donor = models.donor_directory(stage.donor)
    tokenizer = None if stage.vocabulary is None else stage.vocabulary.tokenizer
    if tokenizer is None and isinstance(stage.donor, StagedModel) and stage.donor.own_words:
        tokenizer = stage.donor.tokenizer()
    files = tokenizer_files(tokenizer, donor, _template(stage.document, models, folder))
    if stage.vocabulary is not None:
        generation = followed(stage, models).generation(donor)
        if generation is not None:
            files = replace(files, made={**files.made, "generation_config.json": generation})
    return files


def with_vocabulary(config: Mapping[str, Any], stage: Stage, models: Models) -> dict[str, Any]:
    """The output's configuration with the numbers of its vocabulary."""
    return dict(config) if stage.vocabulary is None else followed(stage, models).config(config)


def followed(stage: Stage, models: Models) -> Followed:
    """How configurations follow the vocabulary of a document that has tokenizer settings."""
    assert stage.vocabulary is not None
    source = stage.vocabulary.source
    return Followed(
        stage.vocabulary,
        models.tokenizer(donor_reference(stage.document)),
        None if source is None else models.directory(source),
        _rows(stage.donor, stage.vocabulary.alignment.rows),
    )


def _rows(donor: Model, rows: int) -> dict[int, int]:
    """The output's number of rows by those of the donor's tables, the embedding's first."""
    plain: Model = donor.model if isinstance(donor, RemappedModel) else donor
    main = plain.tokens.embedding or plain.tokens.head
    names = [*([main] if main is not None else []), *plain.architecture.around]
    found = (table_rows(plain, name) for name in names if name in plain)
    return dict.fromkeys((number for number in found if number is not None), rows)


def _template(document: Document, models: Models, folder: Path | None) -> str | None:
    if document.chat_template is None:
        return None
    templates = map(models.template, document.references())
    return choose(document.chat_template, templates, folder)
