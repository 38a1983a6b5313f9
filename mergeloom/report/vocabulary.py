"""Reports of a vocabulary: its sizes, and the origin of a token's rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergeloom.planners.plan import Plan
from mergeloom.planners.vocabulary.find import token_number
from mergeloom.planners.vocabulary.summary import ORIGINS, VocabularySummary
from mergeloom.report import plan_records

if TYPE_CHECKING:
    from mergeloom.report import records


def vocabulary_report(found: VocabularySummary | None) -> plan_records.VocabularyReport | None:
    """The report of the output's vocabulary, if there are tokenizer settings."""
    if found is None:
        return None
    return plan_records.VocabularyReport(
        tokenizer=found.source,
        tokens=found.tokens,
        added=found.added,
        removed=found.removed,
        rows=found.rows,
        models=tuple(
            plan_records.VocabularyRows(item.model, item.rows, item.unused, dict(item.origins))
            for item in found.models
        ),
    )


def token_report(plan: Plan, token: str) -> records.TokenReport:
    """The origin of the rows of one token.

    Raises:
        ConfigError: the plan has no tokenizer settings, or the vocabulary lacks the token.
    """
    from mergeloom.report import records

    number = token_number(plan.side_files, plan.vocabulary, token)
    assert plan.vocabulary is not None
    return records.TokenReport(
        token=token,
        id=number,
        models=tuple(
            records.TokenRows(
                item.model,
                item.origin,
                ORIGINS[item.origin],
                tuple(records.TokenSource(model, row) for model, row in item.rows),
            )
            for item in plan.vocabulary.origins(number)
        ),
    )
