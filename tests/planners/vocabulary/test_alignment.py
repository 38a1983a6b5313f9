"""Rows of several vocabularies brought to one, against the rules written out token by token."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from mergeloom.planners.vocabulary.alignment import (
    Alignment,
    RowSetting,
    Vocabulary,
    round_up,
    united_ids,
)

A = Vocabulary("a", {"x": 0, "y": 1, "lost": 7}, 4)
B = Vocabulary("b", {"y": 0, "x": 1, "z": 2}, 3)
C = Vocabulary("c", {"z": 0, "only": 1}, 2)


def aligned(
    models: Sequence[Vocabulary],
    base: int | None,
    named: dict[str, RowSetting] | None = None,
    rows: int | None = None,
) -> tuple[dict[str, int], Alignment]:
    with_rows = [{t: n for t, n in model.ids.items() if n < model.rows} for model in models]
    ids = united_ids(with_rows[0], with_rows[1:])
    for token in named or {}:
        ids.setdefault(token, max(ids.values()) + 1)
    count = rows or max(ids.values()) + 1
    return ids, Alignment.of(models, base, ids, count, named or {})


def test_a_union_keeps_the_first_ids() -> None:
    found = united_ids({"x": 0, "y": 3}, [{"z": 1, "y": 0}, {"w": 5, "q": 2}])
    assert found == {"x": 0, "y": 3, "z": 4, "q": 5, "w": 6}


def test_missing_rows_come_from_the_base_the_only_owner_or_the_mean() -> None:
    ids, found = aligned([A, B, C], base=0)
    assert ids == {"x": 0, "y": 1, "z": 2, "only": 3}
    everyone = range(3)

    def origin(model: int, token: str) -> tuple[str, tuple[tuple[int, int], ...]]:
        item = found.origin(model, ids[token], everyone)
        return item.origin, item.rows

    assert origin(0, "x") == ("own", ((0, 0),))
    assert origin(1, "x") == ("own", ((1, 1),))
    assert origin(2, "x") == ("base", ((0, 0),))
    assert origin(0, "only") == ("only", ((2, 1),))
    assert origin(0, "z") == ("mean", ((1, 2), (2, 0)))
    assert found.count_origins(2, everyone) == {"own": 2, "base": 2}


def test_only_models_with_the_table_lend_rows() -> None:
    ids, found = aligned([A, B, C], base=0)
    row = ids["z"]
    assert found.origin(0, row, [0, 1]).origin == "only"
    assert found.origin(0, row, [0]).origin == "zero"


def test_a_configuration_may_name_rows() -> None:
    named = {
        "x": RowSetting(None, force=True),
        "z": RowSetting((1, 0)),
        "new": RowSetting((2, 1)),
    }
    ids, found = aligned([A, B, C], 0, named)
    everyone = range(3)
    assert found.origin(1, ids["x"], everyone).origin == "zero"
    assert found.origin(0, ids["z"], everyone).rows == ((1, 0),)
    assert found.origin(2, ids["z"], everyone).origin == "own"  # it has one, unforced
    assert all(found.origin(i, ids["new"], everyone).rows == ((2, 1),) for i in everyone)


def test_a_model_that_fits_is_left_alone() -> None:
    _, same = aligned(
        [Vocabulary("a", {"x": 0, "y": 1}, 2), Vocabulary("b", {"y": 1, "x": 0}, 2)], 0
    )
    assert not same.is_rearranged(0)
    assert not same.is_rearranged(1)
    _, longer = aligned([Vocabulary("a", {"x": 0, "y": 1}, 5)], 0)
    assert longer.is_rearranged(0)
    assert list(longer.plan(0, [0]).maps[0]) == [0, 1]


def test_the_output_is_padded_to_a_multiple_and_rows_of_padding_are_counted() -> None:
    assert [round_up(5, None), round_up(5, 4), round_up(8, 4)] == [5, 8, 8]
    _, found = aligned([A, B], 0, rows=8)
    assert found.plan(0, [0, 1]).padding == 5
    assert found.count_origins(0, [0, 1])["padding"] == 5


TOKENS = "abcdef"
vocabularies = st.permutations(TOKENS).flatmap(
    lambda order: st.builds(
        lambda count, rows: Vocabulary("m", {t: i for i, t in enumerate(order[:count])}, rows),
        st.integers(1, len(TOKENS)),
        st.integers(1, len(TOKENS) + 1),
    )
)


@given(models=st.lists(vocabularies, min_size=1, max_size=4), has_base=st.booleans())
def test_row_plans_follow_the_rules_for_any_vocabularies(
    models: list[Vocabulary], has_base: bool
) -> None:
    if models[0].rows < 1 or not any(n < models[0].rows for n in models[0].ids.values()):
        return
    ids, found = aligned(models, 0 if has_base else None)
    everyone = range(len(models))
    for position, model in enumerate(models):
        maps = found.plan(position, everyone).maps
        for token, row in ids.items():
            taken = {other: row_map[row] for other, row_map in maps.items() if row_map[row] >= 0}
            owners = {
                i: m.ids[token] for i, m in enumerate(models) if m.ids.get(token, m.rows) < m.rows
            }
            if model.ids.get(token, model.rows) < model.rows:
                assert taken == {position: model.ids[token]}
            elif has_base and 0 in owners:
                assert taken == {0: owners[0]}
            else:
                assert taken == owners
