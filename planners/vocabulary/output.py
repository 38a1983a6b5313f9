"""What an output takes over of its tokenizer: files, and numbers in its configurations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.storage.folder import Folder
from mergeloom.planners.models.small_files import read_object
from mergeloom.planners.vocabulary.chat_template import template_files
from mergeloom.planners.vocabulary.decide import VocabularyPlan
from mergeloom.planners.vocabulary.sizes import with_sizes
from mergeloom.planners.vocabulary.token_ids import with_token_ids
from mergeloom.planners.vocabulary.tokenizer import Tokenizer
from mergeloom.planners.vocabulary.written import changed_files

GENERATION = "generation_config.json"


@dataclass(frozen=True, eq=False)
class TokenizerFiles:
    """Where the tokenizer's files are taken over from, and contents that are written instead of
    some; ``None`` for what is left out."""

    folder: Folder | None
    made: Mapping[str, bytes | None] = field(default_factory=dict)


def tokenizer_files(
    tokenizer: Tokenizer | None, donor: Folder | None, template: str | None
) -> TokenizerFiles:
    """Files of the output's ``tokenizer``; that of the ``donor``, as it is, if it is ``None``.

    Raises:
        CheckpointError: they cannot be understood.
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
class Followed:
    """How configurations follow a vocabulary.

    ``rows`` gives numbers of rows of the output by those of the donor, ``donor`` is its tokenizer.
    ``source`` is the folder of the model that the tokenizer is from, where that is another one.
    """

    vocabulary: VocabularyPlan
    donor: Tokenizer | None
    source: Folder | None
    rows: Mapping[int, int]

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The output's ``config.json``, of the donor's."""
        return with_sizes(self._ids(config, "config.json"), self.rows)

    def generation(self, folder: Folder | None) -> bytes | None:
        """The output's ``generation_config.json``, if it differs from the one in ``folder``."""
        if folder is None or not folder.has(GENERATION):
            return None
        before = read_object(folder, GENERATION)
        after = self._ids(before, GENERATION)
        return None if after == before else (json.dumps(after, indent=2) + "\n").encode()

    def _ids(self, config: Mapping[str, Any], name: str) -> dict[str, Any]:
        twin = None
        if self.source is not None and self.source.has(name):
            twin = read_object(self.source, name)
        ids = self.vocabulary.tokenizer.ids
        tokens = {} if self.donor is None else {n: token for token, n in self.donor.ids.items()}

        def moved(number: int) -> int | None:
            token = tokens.get(number)
            if token is None:  # no token of the donor's: it never meant any
                return number
            return ids.get(token)

        return with_token_ids(config, twin, moved)
