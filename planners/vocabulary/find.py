"""Finds the id of a token in the tokenizer of a planned output."""

from __future__ import annotations

from collections.abc import Iterable

from mergeloom.engine.base.errors import CheckpointError, ConfigError
from mergeloom.engine.base.suggest import nearest
from mergeloom.engine.output.side_files import SideFile
from mergeloom.planners.vocabulary.summary import VocabularySummary
from mergeloom.planners.vocabulary.tokenizer import TOKENIZER_FILE, ids_of


def token_number(
    files: Iterable[SideFile], vocabulary: VocabularySummary | None, token: str
) -> int:
    """The id of a token in the output whose small files are ``files``.

    Raises:
        ConfigError: there are no tokenizer settings, or the vocabulary lacks the token.
    """
    if vocabulary is None:
        raise ConfigError(
            "the configuration has no tokenizer settings, so rows are merged by id",
            remedy="write 'tokenizer_source: union' to merge rows by token",
        )
    library = next((file for file in files if file.name == TOKENIZER_FILE), None)
    if library is None:
        raise CheckpointError(
            f"the output has no {TOKENIZER_FILE}, so {token!r} cannot be looked up",
            remedy=f"copy {TOKENIZER_FILE} into the directory of the base or first model",
        )
    ids = ids_of(b"".join(library.pieces()), TOKENIZER_FILE)
    number = ids.get(token)
    if number is None:
        near = nearest(token, [each for each in ids if each[:1] == token[:1]][:5000])
        raise ConfigError(
            f"the output has no token {token!r}",
            remedy="" if near is None else f"did you mean {near!r}?",
        )
    return number
