"""Plans the output's vocabulary: its tokenizer, and the rows of each model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from mergeloom.engine.base.errors import Finding, LoomError, Place, Severity
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.base.suggest import nearest, suggest
from mergeloom.planners.config.model_reference import ModelReference
from mergeloom.planners.config.tokenizer import TokenizerSettings, TokenRow
from mergeloom.planners.transplant.matching import Matches, match_tokens, with_transplanted_rows
from mergeloom.planners.vocabulary.alignment import (
    Alignment,
    RowSetting,
    Vocabulary,
    round_up,
    united_ids,
)
from mergeloom.planners.vocabulary.tokenizer import AddedToken, TokenChanges, Tokenizer

MAX_PADDING = 1 << 20
"""Approximate maximum number of rows without a token."""

DEFAULT_FLAGS = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": True,
    "special": False,
}
"""Flags of tokens that a configuration adds."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model of the merge: name, tokenizer, number of rows of its embedding."""

    name: str
    tokenizer: Tokenizer | None
    rows: int


class ModelFinder(Protocol):
    """Finds the models named in settings."""

    def position(self, reference: ModelReference) -> int | None:
        """The position of a model among the candidates; ``None`` if it is not merged."""
        ...

    def tokenizer(self, reference: ModelReference) -> Tokenizer | None:
        """The tokenizer of any model."""
        ...


@dataclass(frozen=True, eq=False)
class VocabularyPlan:
    """The output's tokenizer, and the alignment of the models' rows to it.

    ``names`` are the models, in the order of the alignment. ``source`` is the model that the
    tokenizer is from, unless that is the base or the first. ``warnings`` are what to know of it.
    ``tokenizers`` are those of the models; for a transplant, ``matches`` are the output's tokens
    that each of them has.
    """

    alignment: Alignment
    tokenizer: Tokenizer
    names: tuple[str, ...]
    source: ModelReference | None
    warnings: tuple[Finding, ...]
    tokenizers: tuple[Tokenizer, ...] = ()
    matches: tuple[Matches, ...] = ()

    @property
    def tokens(self) -> int:
        """Number of tokens of the output."""
        return len(self.tokenizer.ids)


def plan_vocabulary(
    settings: TokenizerSettings,
    candidates: Sequence[Candidate],
    base: int | None,
    finder: ModelFinder,
) -> VocabularyPlan:
    """The vocabulary that ``settings`` ask for; ``base`` is the base model's position, if any.

    Raises:
        ConfigError: the settings name a missing model or token.
        CheckpointError: a tokenizer is malformed or not supported.
    """
    source = settings.source if isinstance(settings.source, ModelReference) else None
    output = None
    if source is not None:
        output = _tokenizer_of_source(source, candidates, finder, settings.place)
    first = candidates[base or 0]
    assumed, owner = (first.tokenizer, first.name) if first.tokenizer else (output, str(source))
    if assumed is None:
        which = "base" if base is not None else "first"
        other = next((each.name for each in candidates if each.tokenizer is not None), None)
        instead = (
            f"write 'tokenizer_source: {other}' to use that of '{other}', or " if other else ""
        )
        raise settings.place.error(
            f"the {which} model '{first.name}' has no tokenizer, but these settings need one",
            f"{instead}copy its tokenizer's files, at least tokenizer.json, into its directory",
        )
    warnings = [
        _warning(f"'{candidate.name}' has no tokenizer: that of '{owner}' is assumed")
        for candidate in candidates
        if candidate.tokenizer is None
    ]
    tokenizers = [candidate.tokenizer or assumed for candidate in candidates]
    vocabularies = [
        Vocabulary(candidate.name, tokenizer.ids, candidate.rows)
        for candidate, tokenizer in zip(candidates, tokenizers, strict=True)
    ]
    warnings += filter(None, map(_rowless_warning, vocabularies))
    if output is not None:
        if settings.transplant is None:  # a transplant compares tokens by content
            pairs = list(zip(vocabularies, tokenizers, strict=True))
            warnings += _rule_warnings(str(source), output, pairs)
    else:
        output = _merged_tokenizer(settings, vocabularies, tokenizers, base or 0, warnings)
    output = _with_added_tokens(output, settings.tokens)
    alignment, matches = _aligned_rows(
        settings, vocabularies, tokenizers, output, base, finder, warnings
    )
    return VocabularyPlan(
        alignment,
        output,
        tuple(candidate.name for candidate in candidates),
        source if source is not None and finder.position(source) != (base or 0) else None,
        tuple(warnings),
        tuple(tokenizers),
        matches,
    )


def _merged_tokenizer(
    settings: TokenizerSettings,
    vocabularies: Sequence[Vocabulary],
    tokenizers: Sequence[Tokenizer],
    base: int,
    warnings: list[Finding],
) -> Tokenizer:
    """The tokenizer of the model at ``base``, with tokens of the others if a union is asked for."""
    first, name = tokenizers[base], vocabularies[base].model
    output = _without_tokens(first, frozenset(vocabularies[base].tokens_without_row))
    others = [
        (vocabulary, tokenizer)
        for vocabulary, tokenizer in zip(vocabularies, tokenizers, strict=True)
        if tokenizer is not first
    ]
    warnings += _rule_warnings(name, first, others)
    if settings.source == "union":
        output = _union_tokenizer(output, others, name, warnings)
    return output


def _aligned_rows(
    settings: TokenizerSettings,
    vocabularies: Sequence[Vocabulary],
    tokenizers: Sequence[Tokenizer],
    output: Tokenizer,
    base: int | None,
    finder: ModelFinder,
    warnings: list[Finding],
) -> tuple[Alignment, tuple[Matches, ...]]:
    """The rows of the models for the tokens of ``output``; for a transplant, also the matches."""
    row_settings = {
        token: row
        for token, setting in settings.tokens.items()
        if (row := _row_setting(token, setting, vocabularies, finder)) is not None
    }
    rows = round_up(max(output.ids.values(), default=-1) + 1, settings.pad_to_multiple_of)
    if rows > 4 * len(output.ids) + MAX_PADDING:
        raise settings.place.error(
            f"{len(output.ids)} tokens would need {rows} rows, far too many",
            "check the tokenizer and 'pad_to_multiple_of'",
        )
    matches: tuple[Matches, ...] = ()
    if settings.transplant is not None:
        prefixes = settings.transplant.prefix != "no"
        matches = tuple(
            match_tokens(tokenizer, output, vocabulary.rows, prefixes)
            for vocabulary, tokenizer in zip(vocabularies, tokenizers, strict=True)
        )
        vocabularies = [
            replace(vocabulary, ids=found.shared)
            for vocabulary, found in zip(vocabularies, matches, strict=True)
        ]
    alignment = Alignment.of(vocabularies, base, output.ids, rows, row_settings)
    warnings += _no_effect_warnings(settings.tokens, output.ids, alignment)
    if settings.transplant is not None:
        return with_transplanted_rows(settings.transplant, alignment, output.ids, matches), matches
    lacking = set(alignment.rows_without_source())
    if lacking:
        lost = [token for token, number in output.ids.items() if number in lacking]
        warnings.append(
            _warning(
                f"no model has a row for {_count_text(lost)} ({_first_token(lost)}): their rows "
                "will be zeros"
            )
        )
    return alignment, matches


def _tokenizer_of_source(
    source: ModelReference, candidates: Sequence[Candidate], finder: ModelFinder, place: Place
) -> Tokenizer:
    try:
        position = finder.position(source)
        if position is not None:
            tokenizer = candidates[position].tokenizer
        else:
            tokenizer = finder.tokenizer(source)
    except LoomError as error:
        if "/" in str(source):  # it cannot be one of the words
            raise error.at(place) from error
        known = suggest(str(source), ["union", "base", *(item.name for item in candidates)])
        raise place.error(
            f"'{source}' is not 'union', 'base' or the name of a model ({error.cause})",
            known,
        ) from error
    if tokenizer is None:
        raise place.error(
            f"the tokenizer should come from '{source}', which has none",
            "copy its tokenizer's files into its directory, or name another model",
        )
    return tokenizer


def _without_tokens(tokenizer: Tokenizer, removed: frozenset[str]) -> Tokenizer:
    if not removed:
        return tokenizer
    changes = tokenizer.changes
    return replace(
        tokenizer,
        ids={token: number for token, number in tokenizer.ids.items() if token not in removed},
        added={token: item for token, item in tokenizer.added.items() if token not in removed},
        changes=TokenChanges(
            {token: n for token, n in changes.ordinary.items() if token not in removed},
            {token: item for token, item in changes.added.items() if token not in removed},
            changes.removed | removed,
        ),
    )


def _union_tokenizer(
    first: Tokenizer,
    others: Sequence[tuple[Vocabulary, Tokenizer]],
    name: str,
    warnings: list[Finding],
) -> Tokenizer:
    """``first`` with those tokens of all other tokenizers that have a row in their model."""
    with_rows = [
        {token: number for token, number in item.ids.items() if number < vocabulary.rows}
        for vocabulary, item in others
    ]
    ids = united_ids(first.ids, with_rows)
    added: dict[str, AddedToken] = {}
    differing: dict[str, str] = {}
    for (vocabulary, item), known in zip(others, with_rows, strict=True):
        for token, entry in item.added.items():
            if token not in known:
                continue
            before = first.added.get(token) or added.get(token)
            if before is not None:
                if before.flags != entry.flags:
                    differing.setdefault(token, vocabulary.model)
            elif entry.special or (entry.is_extra and token not in first.ids):
                added[token] = replace(entry, number=ids[token], is_extra=token not in first.ids)
    ordinary = {
        token: number
        for token, number in ids.items()
        if token not in first.ids and token not in added
    }
    if ordinary and first.takes_whole_words:
        warnings.append(
            _warning(
                f"the tokenizer of '{name}' only finds whole words that are tokens: "
                f"{_count_text(ordinary)} of other models ({_first_token(ordinary)}) are matched "
                "anywhere in a text"
            )
        )
    for token, model in list(differing.items())[:1]:
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        warnings.append(
            _warning(
                f"the added token {token!r}{more} has other flags in '{model}': the flags of the "
                "first model that has it are used"
            )
        )
    changes = first.changes
    return replace(
        first,
        ids=ids,
        added={**first.added, **added},
        changes=TokenChanges(
            {**changes.ordinary, **ordinary}, {**changes.added, **added}, changes.removed
        ),
    )


def _with_added_tokens(tokenizer: Tokenizer, tokens: Mapping[str, TokenRow]) -> Tokenizer:
    """The tokenizer with the missing tokens of the configuration added."""
    new = [token for token in tokens if token not in tokenizer.ids]
    if not new:
        return tokenizer
    following = max(tokenizer.ids.values(), default=-1) + 1
    added = {
        token: AddedToken(token, following + number, DEFAULT_FLAGS)
        for number, token in enumerate(new)
    }
    changes = tokenizer.changes
    return replace(
        tokenizer,
        ids={**tokenizer.ids, **{token: item.number for token, item in added.items()}},
        added={**tokenizer.added, **added},
        changes=TokenChanges(changes.ordinary, {**changes.added, **added}, changes.removed),
    )


def _row_setting(
    token: str, setting: TokenRow, vocabularies: Sequence[Vocabulary], finder: ModelFinder
) -> RowSetting | None:
    """The row that a setting names, checked against the models; ``None`` if it names none."""
    if setting.zero:
        return RowSetting(None, setting.force)
    if setting.model is None:
        return None
    position = finder.position(setting.model)
    if position is None:
        raise setting.place.error(
            f"'{setting.model}' is not a model of this merge",
            suggest(str(setting.model), [each.model for each in vocabularies]),
        )
    vocabulary = vocabularies[position]
    wanted = token if setting.token is None else setting.token
    number = setting.token_id if setting.token_id is not None else vocabulary.ids.get(wanted)
    if number is None:
        close = nearest(wanted, [item for item in vocabulary.ids if item[:1] == wanted[:1]][:5000])
        raise setting.place.error(
            f"'{setting.model}' has no token {wanted!r}",
            f"did you mean {close!r}?" if close else "",
        )
    if not 0 <= number < vocabulary.rows:
        raise setting.place.error(
            f"'{setting.model}' has no row for id {number}: its embedding has "
            f"{vocabulary.rows} rows",
            "name a token that has a row, or 'kind: zero'",
        )
    return RowSetting((position, number), setting.force)


def _warning(cause: str, place: Place | None = None, remedy: str = "") -> Finding:
    return Finding(cause, place, remedy, "vocabulary", Severity.WARNING)


def _rowless_warning(vocabulary: Vocabulary) -> Finding | None:
    beyond = vocabulary.tokens_without_row
    if not beyond:
        return None
    first = min(beyond, key=vocabulary.ids.__getitem__)
    return _warning(
        f"{_count_text(beyond)} of '{vocabulary.model}' ({_first_token([first])}) have ids beyond "
        f"the {vocabulary.rows} rows of its embedding and are ignored"
    )


def _rule_warnings(
    name: str, first: Tokenizer, others: Sequence[tuple[Vocabulary, Tokenizer]]
) -> Iterator[Finding]:
    """Warnings about tokenizers that split text by other rules, so that tokens of equal spelling
    may differ in meaning."""
    for vocabulary, other in others:
        rules = [rule for rule, digest in first.rules.items() if other.rules.get(rule) != digest]
        if other.kind != first.kind:
            rules.insert(0, f"kind ({first.kind}, {other.kind})")
        if rules and other.ids.keys() != first.ids.keys():
            yield _warning(
                f"the tokenizers of '{name}' and '{vocabulary.model}' differ in "
                f"{', '.join(rules)}: their tokens are matched by spelling nevertheless"
            )


def _no_effect_warnings(
    tokens: Mapping[str, TokenRow], ids: Mapping[str, int], alignment: Alignment
) -> Iterator[Finding]:
    """Warnings about settings without effect."""
    for token, setting in tokens.items():
        row = ids[token]
        if setting.model is None and not setting.zero:
            yield _warning(
                f"{token!r} has no source: the setting has no effect",
                setting.place,
                "name a 'source' for its row",
            )
        everywhere = all(own[row] >= 0 for own in alignment.own)
        if everywhere and not setting.force and row in alignment.named:
            yield _warning(
                f"every model has its own row for {token!r}, so the setting has no effect",
                setting.place,
                "add 'force: true' to replace these rows",
            )


def _count_text(tokens: Sequence[str] | Mapping[str, int]) -> str:
    return "1 token" if len(tokens) == 1 else f"{len(tokens)} tokens"


def _first_token(tokens: Sequence[str] | Mapping[str, int]) -> str:
    shown = repr(next(iter(tokens)))
    return (shown if len(shown) <= 60 else shown[:57] + "...") + (
        ", ..." if len(tokens) > 1 else ""
    )
