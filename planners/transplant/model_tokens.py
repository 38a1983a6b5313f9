"""Collects the tokens of each model that a transplant needs. Reads no tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mergeloom.planners.config.transplant import TransplantSettings
from mergeloom.planners.models.model import Model
from mergeloom.planners.transplant.matching import Matches
from mergeloom.planners.transplant.pieces import split_tokens
from mergeloom.planners.transplant.plan import ModelTokens, TransplantPlan
from mergeloom.planners.vocabulary.alignment import MISSING, Alignment
from mergeloom.planners.vocabulary.tokenizer import Tokenizer

_NEVER_USED = re.compile(r"unused|reserved", re.IGNORECASE)
"""Parts of tokens that never occur in text."""


def plan_transplant(
    settings: TransplantSettings,
    alignment: Alignment,
    output: Tokenizer,
    tokenizers: Sequence[Tokenizer],
    matches: Sequence[Matches],
    donor: Model | None,
) -> TransplantPlan:
    """The transplant for models with these ``tokenizers``, which are matched to that of ``output``.

    Raises:
        ConfigError: a model shares no token with the donor.
        CheckpointError: a tokenizer cannot split tokens.
    """
    names = {number: token for token, number in output.ids.items()}
    tokens_of_models = [
        _tokens_of_model(settings, alignment, output, names, position, tokenizer, found)
        for position, (tokenizer, found) in enumerate(zip(tokenizers, matches, strict=True))
    ]
    for position, each in enumerate(tokens_of_models):
        if not each.shared and each.lacking and settings.uses_donor_rows:
            raise settings.place.error(
                f"the tokenizer in '{tokenizers[position].folder.name}' shares no token with that "
                "of the donor, so rows cannot be compared",
                "choose the method subword, mean, zero or random",
            )
    rows = 0 if donor is None else donor.shape(donor.tokens.embedding or "")[0]
    return TransplantPlan(settings, donor, tokens_of_models, _unused(output.ids, rows))


def _tokens_of_model(
    settings: TransplantSettings,
    alignment: Alignment,
    output: Tokenizer,
    names: Mapping[int, str],
    position: int,
    tokenizer: Tokenizer,
    found: Matches,
) -> ModelTokens:
    own, size = alignment.own[position], alignment.sizes[position]
    lacking = [row for row in sorted(names) if own[row] == MISSING and row not in alignment.named]
    replacements = {output.ids[token]: row for token, row in found.prefixes.items()}
    pieces: Mapping[int, tuple[int, ...]] = {}
    if settings.method == "subword":
        texts = {
            row: output.text_of(names[row]) or names[row].encode("utf-8", "surrogatepass")
            for row in lacking
        }
        pieces = split_tokens(tokenizer, texts, size)
    shared = [row for row in sorted(names) if own[row] != MISSING]
    return ModelTokens(lacking, replacements, pieces, shared, _unused(tokenizer.ids, size))


def _unused(ids: Mapping[str, int], rows: int) -> list[int]:
    """Rows without a token, or with a token that never occurs in text."""
    taken = {number for token, number in ids.items() if not _NEVER_USED.search(token)}
    return [row for row in range(rows) if row not in taken]
