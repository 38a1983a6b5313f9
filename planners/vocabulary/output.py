"""The output's tokenizer files, and the numbers in its configuration that depend on them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.storage.folder import Folder
from mergeloom.planners.models.small_files import read_object
from mergeloom.planners.vocabulary.changed_files import changed_files
from mergeloom.planners.vocabulary.chat_template import template_files
from mergeloom.planners.vocabulary.plan import VocabularyPlan
from mergeloom.planners.vocabulary.sizes import with_sizes
from mergeloom.planners.vocabulary.token_ids import with_token_ids
from mergeloom.planners.vocabulary.tokenizer import Tokenizer

GENERATION_FILE = "generation_config.json"


@dataclass(frozen=True, eq=False)
class TokenizerFiles:
    """The folder that tokenizer files are copied from, and the contents written in place of some of
    them; ``None`` for files that are left out."""

    folder: Folder | None
    made: Mapping[str, bytes | None] = field(default_factory=dict)


def tokenizer_files(
    tokenizer: Tokenizer | None, donor: Folder | None, template: str | None
) -> TokenizerFiles:
    """The files of the output's ``tokenizer``; if that is ``None``, the ``donor``'s files.

    Raises:
        CheckpointError: a file is malformed.
    """
    folder = donor if tokenizer is None else tokenizer.folder
    made: dict[str, bytes | None] = {}
    if tokenizer is not None:
        made |= changed_files(tokenizer.folder, tokenizer.changes)
        template = tokenizer.template if template is None else template
    if template is not None:
        made |= template_files(folder, made, template)
    return TokenizerFiles(folder, made)


@dataclass(frozen=True, eq=False)
class VocabularySettings:
    """Rewrites settings that depend on the vocabulary: its size, and token ids.

    ``rows`` maps numbers of rows of the donor to those of the output; ``donor`` is the donor's
    tokenizer. ``source`` is the folder of the model that the tokenizer is from, if that is not the
    donor.
    """

    vocabulary: VocabularyPlan
    donor: Tokenizer | None
    source: Folder | None
    rows: Mapping[int, int]

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The output's ``config.json``, from the donor's."""
        return with_sizes(self._with_new_ids(config, "config.json"), self.rows)

    def generation(self, folder: Folder | None) -> bytes | None:
        """The output's ``generation_config.json``, if it differs from the one in ``folder``."""
        if folder is None or not folder.has(GENERATION_FILE):
            return None
        before = read_object(folder, GENERATION_FILE)
        after = self._with_new_ids(before, GENERATION_FILE)
        return None if after == before else (json.dumps(after, indent=2) + "\n").encode()

    def _with_new_ids(self, config: Mapping[str, Any], name: str) -> dict[str, Any]:
        counterpart = None
        if self.source is not None and self.source.has(name):
            counterpart = read_object(self.source, name)
        ids = self.vocabulary.tokenizer.ids
        tokens = {} if self.donor is None else {n: token for token, n in self.donor.ids.items()}

        def new_id(number: int) -> int | None:
            token = tokens.get(number)
            if token is None:  # it is not the id of a token
                return number
            return ids.get(token)

        return with_token_ids(config, counterpart, new_id)
