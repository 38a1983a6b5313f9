"""Finds the tokens of a donor's tokenizer that a model has too. Reads no files.

donor's token          the model's                     why
Ġthe                   Ġthe                            same spelling
Ġthe                   ▁the                            same bytes of text
<|end|> (eos)          </s> (eos)                      same role
Ġtherefore             Ġthe      (if allowed)          longest token that is a prefix
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from mergeloom.engine.base.records import dataclass
from mergeloom.planners.config.transplant import TransplantSettings
from mergeloom.planners.vocabulary.alignment import MISSING, Alignment, RowOriginKind
from mergeloom.planners.vocabulary.spelling import is_single_byte, text_bytes
from mergeloom.planners.vocabulary.tokenizer import Tokenizer

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True)
class Matches:
    """Rows of the model by the donor's tokens.

    ``spelled`` are tokens with the same spelling, ``bytes`` those for the same bytes, ``roles``
    special tokens with the same role, ``prefixes`` those with the row of their longest prefix,
    which is not only white space before a word.
    """

    spelled: Mapping[str, int]
    bytes: Mapping[str, int]
    roles: Mapping[str, int]
    prefixes: Mapping[str, int]

    @property
    def shared(self) -> dict[str, int]:
        """All tokens with the same meaning in both."""
        return {**self.spelled, **self.bytes, **self.roles}


def match_tokens(model: Tokenizer, donor: Tokenizer, rows: int, prefixes: bool) -> Matches:
    """Match a donor's tokens to those of a model with ``rows`` rows; with ``prefixes``, also to
    tokens that they begin with."""
    own = _rows_by_text(model, rows)
    spelled: dict[str, int] = {}
    same: dict[str, int] = {}
    left: list[str] = []
    for token in donor.ids:
        number = model.ids.get(token, rows)
        if number < rows and _means_the_same(token, model, donor):
            spelled[token] = number
            continue
        meant = donor.text_of(token)
        found = None if meant is None else own.get(meant)
        if found is not None:
            same[token] = found
        else:
            left.append(token)
    roles = dict(_rows_by_role(model, donor, rows, {*spelled, *same}))
    longest: dict[str, int] = {}
    if prefixes:
        for token in left:
            whole = donor.text_of(token)
            if token in roles or token in donor.added or whole is None:
                continue
            # A space says nothing about the word after it.
            shortest = len(whole) - len(whole.lstrip()) if whole.strip() else 0
            lengths = range(len(whole) - 1, shortest, -1)
            found = next((own[whole[:n]] for n in lengths if whole[:n] in own), None)
            if found is not None:
                longest[token] = found
    return Matches(spelled, same, roles, longest)


def _means_the_same(token: str, model: Tokenizer, donor: Tokenizer) -> bool:
    """Whether a token that both have means the same in both."""
    if token in model.added or token in donor.added or model.spelling == donor.spelling:
        return True
    return text_bytes(token, model.spelling) == text_bytes(token, donor.spelling)


def _rows_by_text(model: Tokenizer, rows: int) -> dict[bytes, int]:
    """Rows of tokens by their bytes of text; tokens spelled as bytes come last."""
    found: dict[bytes, int] = {}
    byte_tokens: list[tuple[bytes, int]] = []
    for token, number in model.ids.items():
        key = model.text_of(token)
        if number >= rows or key is None:
            continue
        if is_single_byte(token, model.spelling):
            byte_tokens.append((key, number))
        else:
            found.setdefault(key, number)
    for key, number in byte_tokens:
        found.setdefault(key, number)
    return found


def _rows_by_role(
    model: Tokenizer, donor: Tokenizer, rows: int, known: set[str]
) -> Iterator[tuple[str, int]]:
    for role in ROLES:
        theirs, own = donor.special_names.get(role), model.special_names.get(role)
        if theirs is None or own is None or theirs in known or theirs not in donor.ids:
            continue
        number = model.ids.get(own, rows)
        if number < rows:
            known.add(theirs)
            yield theirs, number


def with_transplanted_rows(
    settings: TransplantSettings,
    alignment: Alignment,
    ids: Mapping[str, int],
    matches: Sequence[Matches],
) -> Alignment:
    """The alignment with the rows that models have under other tokens, and with computed rows."""
    found = tuple(
        _origins_of_rows(settings, alignment, ids, each, position)
        for position, each in enumerate(matches)
    )
    return replace(alignment, special=found)


def _origins_of_rows(
    settings: TransplantSettings,
    alignment: Alignment,
    ids: Mapping[str, int],
    found: Matches,
    position: int,
) -> dict[int, RowOriginKind]:
    own = alignment.own[position]
    kinds: dict[int, RowOriginKind] = {ids[token]: "bytes" for token in found.bytes}
    kinds.update((ids[token], "role") for token in found.roles)
    if settings.prefix in ("embed", "yes"):
        kinds.update((ids[token], "prefix") for token in found.prefixes)
    for number in ids.values():
        if own[number] == MISSING:
            kinds.setdefault(number, "made")
    return {row: kind for row, kind in kinds.items() if row not in alignment.named}
