"""The summary of a vocabulary in a plan: sizes, and the origins of the rows of each model."""

from __future__ import annotations

from collections.abc import Mapping

from mergeloom.engine.base.records import dataclass
from mergeloom.planners.vocabulary.alignment import Alignment
from mergeloom.planners.vocabulary.plan import VocabularyPlan

ORIGINS: Mapping[str, str] = {
    "own": "its own",
    "base": "the base model's",
    "only": "the only model's that has the token",
    "mean": "the mean over the models that have the token",
    "bytes": "its own, of a token that stands for the same bytes",
    "role": "its own, of the special token in the same role",
    "prefix": "its own, of the longest token that this one begins with",
    "made": "made for the transplant",
    "named": "named by the configuration",
    "zero": "zeros",
    "padding": "padding, the mean of all others",
}
"""The origins of rows, in words."""


@dataclass(frozen=True, slots=True)
class ModelRows:
    """The embedding of one model: its number of ``rows``, how many of them are ``unused`` by the
    output, and the number of the output's rows by origin."""

    model: str
    rows: int
    unused: int
    origins: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class TokenOrigin:
    """The origin of a token's row in one model's table, and the rows (model, number) that it is
    copied from or the mean of."""

    model: str
    origin: str
    rows: tuple[tuple[str, int], ...]


@dataclass(frozen=True, eq=False)
class VocabularySummary:
    """The output's vocabulary: the number of tokens, how many are ``added`` to the tokenizer of
    ``source`` and ``removed`` from it, the number of rows, and the rows of each model."""

    source: str
    tokens: int
    added: int
    removed: int
    rows: int
    models: tuple[ModelRows, ...]
    alignment: Alignment

    def origins(self, number: int) -> tuple[TokenOrigin, ...]:
        """The origin of row ``number`` of the output in each model."""
        everyone = range(len(self.models))
        names = [model.model for model in self.models]
        result = []
        for position, name in enumerate(names):
            found = self.alignment.origin(position, number, everyone)
            rows = tuple((names[model], row) for model, row in found.rows)
            result.append(TokenOrigin(name, found.origin, rows))
        return tuple(result)


def summarise(plan: VocabularyPlan) -> VocabularySummary:
    """The summary of ``plan``; the tokens themselves are in the output's tokenizer."""
    plan.alignment.drop_plans()
    alignment, changes = plan.alignment, plan.tokenizer.changes
    everyone = range(len(plan.names))
    models = tuple(
        ModelRows(
            name, size, _unused(alignment, position), alignment.count_origins(position, everyone)
        )
        for position, (name, size) in enumerate(zip(plan.names, alignment.sizes, strict=True))
    )
    ordinary = sum(1 for token in changes.ordinary if token not in changes.added)
    new = sum(1 for item in changes.added.values() if item.is_extra)
    source = plan.names[alignment.base or 0] if plan.source is None else str(plan.source)
    return VocabularySummary(
        source, plan.tokens, ordinary + new, len(changes.removed), alignment.rows, models, alignment
    )


def _unused(alignment: Alignment, position: int) -> int:
    taken = {row for row in alignment.own[position] if row >= 0}
    return alignment.sizes[position] - len(taken)
