"""The tokenizer and chat template of a planned document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.storage.folder import Folder
from mergeloom.planners.models.model import Model, PlannedModel
from mergeloom.planners.models.pool import Models
from mergeloom.planners.slices.document import donor_reference
from mergeloom.planners.slices.stage import Stage
from mergeloom.planners.vocabulary.chat_template import choose_template
from mergeloom.planners.vocabulary.output import TokenizerFiles, VocabularySettings, tokenizer_files
from mergeloom.planners.vocabulary.plan import VocabularyPlan
from mergeloom.planners.vocabulary.remapped_model import RemappedModel, table_rows
from mergeloom.planners.vocabulary.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class OutputTokenizer:
    """The tokenizer and chat template of a document's output, and dependent settings.

    ``vocabulary`` is planned from tokenizer settings, explicit or default ones; ``folder`` is the
    folder of the configuration.
    """

    stage: Stage
    vocabulary: VocabularyPlan | None
    models: Models
    folder: Folder

    @property
    def is_changed(self) -> bool:
        """Whether tokenizer or chat template differ from the donor's files."""
        document, donor = self.stage.document, self.stage.donor
        before = isinstance(donor, PlannedModel) and donor.has_own_tokenizer
        return before or self.vocabulary is not None or document.chat_template is not None

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, for later documents.

        Raises:
            CheckpointError: it is not supported.
        """
        if self.vocabulary is not None:
            found: Tokenizer | None = self.vocabulary.tokenizer
        else:
            found = self.models.tokenizer(donor_reference(self.stage.document))
        template = self._template()
        return found if found is None or template is None else replace(found, template=template)

    def files(self) -> TokenizerFiles:
        """The tokenizer's files.

        Raises:
            ConfigError: the chat template is invalid.
            CheckpointError: a tokenizer is not supported.
        """
        model = self.stage.donor
        donor = self.models.donor_folder(model)
        tokenizer = None if self.vocabulary is None else self.vocabulary.tokenizer
        if tokenizer is None and isinstance(model, PlannedModel) and model.has_own_tokenizer:
            tokenizer = model.tokenizer()
        files = tokenizer_files(tokenizer, self.models.tokenizer_folder(model), self._template())
        if self.vocabulary is not None:
            generation = self._vocabulary_settings(self.vocabulary).generation(donor)
            if generation is not None:
                files = replace(files, made={**files.made, "generation_config.json": generation})
        return files

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The output's configuration with vocabulary size and token ids."""
        if self.vocabulary is None:
            return dict(config)
        return self._vocabulary_settings(self.vocabulary).config(config)

    def _vocabulary_settings(self, vocabulary: VocabularyPlan) -> VocabularySettings:
        """The settings that depend on the vocabulary."""
        source = vocabulary.source
        return VocabularySettings(
            vocabulary,
            self.models.tokenizer(donor_reference(self.stage.document)),
            None if source is None else self.models.folder(source),
            _rows_by_table(self.stage.donor, vocabulary.alignment.rows),
        )

    def _template(self) -> str | None:
        document = self.stage.document
        if document.chat_template is None:
            return None
        templates = map(self.models.template, document.merged_models())
        return choose_template(document.chat_template, templates, self.folder)


def _rows_by_table(donor: Model, rows: int) -> dict[int, int]:
    """The output's number of rows by the donor's, for each table, the embedding first."""
    plain: Model = donor.model if isinstance(donor, RemappedModel) else donor
    main = plain.tokens.embedding or plain.tokens.head
    names = [*([main] if main is not None else []), *plain.architecture.outside_layers]
    found = (table_rows(plain, name) for name in names if name in plain)
    return dict.fromkeys((number for number in found if number is not None), rows)
