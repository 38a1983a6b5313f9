"""Collects what a transplant needs to know about the tokens of each model. Reads no tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mergeloom.planners.config.transplant import TransplantSettings
from mergeloom.planners.models.model import Model
from mergeloom.planners.transplant.graft import Graft, Words
from mergeloom.planners.transplant.matching import Matches
from mergeloom.planners.transplant.pieces import cut
from mergeloom.planners.vocabulary.alignment import MISSING, Alignment
from mergeloom.planners.vocabulary.tokenizer import Tokenizer

_UNUSED = re.compile(r"unused|reserved", re.IGNORECASE)
"""Parts of the names of tokens that never occur."""


def graft_of(
    settings: TransplantSettings,
    alignment: Alignment,
    output: Tokenizer,
    tokenizers: Sequence[Tokenizer],
    matches: Sequence[Matches],
    donor: Model | None,
) -> Graft:
    """The graft for models with these ``tokenizers``, which are matched to that of ``output``.

    Raises:
        ConfigError: a model shares no token with the donor.
        CheckpointError: a tokenizer cannot split tokens.
    """
    names = {number: token for token, number in output.ids.items()}
    words = [
        _words(settings, alignment, output, names, position, tokenizer, found)
        for position, (tokenizer, found) in enumerate(zip(tokenizers, matches, strict=True))
    ]
    for position, each in enumerate(words):
        if not each.shared and each.lacking and settings.compares:
            raise settings.place.error(
                f"model {position + 1} shares no token with the donor: rows cannot be compared",
                "choose the method subword, mean, zero or random",
            )
    rows = 0 if donor is None else donor.shape(donor.tokens.embedding or "")[0]
    return Graft(settings, donor, words, _unused(output.ids, rows))


def _words(
    settings: TransplantSettings,
    alignment: Alignment,
    output: Tokenizer,
    names: Mapping[int, str],
    position: int,
    tokenizer: Tokenizer,
    found: Matches,
) -> Words:
    own, size = alignment.own[position], alignment.sizes[position]
    lacking = [row for row in sorted(names) if own[row] == MISSING and row not in alignment.named]
    made_of = {output.ids[token]: row for token, row in found.prefixes.items()}
    pieces: Mapping[int, tuple[int, ...]] = {}
    if settings.method == "subword":
        texts = {
            row: output.text_of(names[row]) or names[row].encode("utf-8", "surrogatepass")
            for row in lacking
        }
        pieces = cut(tokenizer, texts, size)
    shared = [row for row in sorted(names) if own[row] != MISSING]
    return Words(lacking, made_of, pieces, shared, _unused(tokenizer.ids, size))


def _unused(ids: Mapping[str, int], rows: int) -> list[int]:
    """Rows of no token, or of a token whose name says that it never occurs."""
    taken = {number for token, number in ids.items() if not _UNUSED.search(token)}
    return [row for row in range(rows) if row not in taken]
