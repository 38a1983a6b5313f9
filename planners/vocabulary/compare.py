"""Warnings about tokenizers that do not match the merged rows, if no settings align them.

Without settings, rows of embeddings are merged by id, which is right only if all models use the
same ids for the same tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from mergeloom.engine.base.errors import CheckpointError, Finding, Severity
from mergeloom.engine.storage.folder import Folder
from mergeloom.planners.vocabulary.tokens import FILES, read_content, read_vocabulary

REMEDY = "write 'tokenizer: {source: union}' to merge rows by token"


class VocabularyCache:
    """Vocabularies of folders, cached by the contents of their files."""

    def __init__(self) -> None:
        self._known: dict[bytes, Mapping[str, int] | None] = {}

    def of(self, folder: Folder) -> Mapping[str, int] | None:
        """The vocabulary in ``folder`` (token to id); ``None`` if it has no tokenizer files.

        Raises:
            CheckpointError: the files are malformed.
        """
        digest = hashlib.blake2b(digest_size=16)
        for name in FILES:
            if not folder.has(name):
                continue
            content = read_content(folder, name)
            digest.update(f"{name} {len(content)} ".encode() + content)
        key = digest.digest()
        if key not in self._known:
            self._known[key] = read_vocabulary(folder)
        return self._known[key]


def comparison_warnings(
    models: Sequence[tuple[str, Folder, int]], donor: Folder | None
) -> Iterator[Finding]:
    """Warnings about the tokenizers of ``models``: (name, folder, rows of the embedding).

    ``donor`` is the folder from which the output's tokenizer is copied.
    """
    compared = VocabularyCache()
    found: dict[str, Mapping[str, int]] = {}
    seen: set[str] = set()
    lacking: list[str] = []
    for name, folder, rows in models:
        if folder.identity in seen:
            continue
        seen.add(folder.identity)
        try:
            ids = compared.of(folder)
        except CheckpointError as error:
            yield _warning(
                f"the tokenizer of '{name}' cannot be compared with the others: {error.cause}",
                error.remedy,
            )
            continue
        if ids is None:
            lacking.append(name)
            continue
        found[name] = ids
        beyond = [token for token, number in ids.items() if number >= rows]
        if beyond:
            first = min(beyond, key=ids.__getitem__)
            yield _warning(
                f"{_tokens_text(len(beyond))} of '{name}' {_have(beyond)} no row in its embedding, "
                f"which has {rows} rows: the id of {_token_text(first)} is {ids[first]}"
            )
    whose = next((name for name, folder, _ in models if folder is donor), None)
    if whose is not None and whose not in found and found:
        others = next(iter(found))
        yield _warning(
            f"'{whose}' has no tokenizer, so the output will have none",
            f"write 'tokenizer_source: {others}' to use that of '{others}'",
        )
    elif found:
        for name in lacking:
            yield _warning(
                f"'{name}' has no tokenizer: its rows are taken to be of the same tokens as those "
                f"of '{next(iter(found))}'",
                "copy its tokenizer's files into its directory, so that this is checked",
            )
    names = list(found)
    for other in names[1:]:
        yield from _difference_warnings(names[0], found[names[0]], other, found[other])


def _difference_warnings(
    first: str, ids: Mapping[str, int], other: str, others: Mapping[str, int]
) -> Iterator[Finding]:
    if ids is others or ids == others:
        return
    tokens = {number: token for token, number in ids.items()}
    theirs = {number: token for token, number in others.items()}
    differing = sorted(n for n, token in tokens.items() if n in theirs and theirs[n] != token)
    if differing:
        number = differing[0]
        yield _warning(
            f"{_ids_text(len(differing))} different tokens in '{first}' and '{other}' "
            f"({number} is {_token_text(tokens[number])} and {_token_text(theirs[number])}), but "
            "rows are matched by id",
            REMEDY,
        )
        return
    for one, its, another, not_its in (
        (first, tokens, other, theirs),
        (other, theirs, first, tokens),
    ):
        more = sorted(its.keys() - not_its.keys())
        if more:
            yield _warning(
                f"'{one}' has {_tokens_text(len(more))} that '{another}' lacks "
                f"({_token_text(its[more[0]])}, "
                f"id {more[0]}), so their rows are matched with unused rows",
                REMEDY,
            )


def _warning(cause: str, remedy: str = "") -> Finding:
    return Finding(cause, None, remedy, "vocabulary", Severity.WARNING)


def _tokens_text(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"


def _ids_text(count: int) -> str:
    return "1 id means" if count == 1 else f"{count} ids mean"


def _have(tokens: Sequence[str]) -> str:
    return "has" if len(tokens) == 1 else "have"


def _token_text(token: str) -> str:
    shown = repr(token)
    return shown if len(shown) <= 60 else shown[:57] + "..."
