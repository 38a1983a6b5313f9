from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from mergeloom.engine.base.records import record


@record(frozen=True, slots=True)
class ByValue:
    number: int
    words: tuple[str, ...] = ()


@record(frozen=True, slots=True, eq=False)
class ByIdentity:
    number: int


@dataclass(frozen=True, slots=True)
class Frozen:
    number: int
    words: tuple[str, ...] = ()


def test_records_are_equal_and_hashed_as_frozen_data_classes_are() -> None:
    assert ByValue(1, ("a",)) == ByValue(1, ("a",)) != ByValue(1)
    assert hash(ByValue(1, ("a",))) == hash(Frozen(1, ("a",)))
    assert len({ByIdentity(1), ByIdentity(1)}) == 2
    assert repr(replace(ByValue(1), words=("b",))) == "ByValue(number=1, words=('b',))"


def test_records_have_no_room_for_more() -> None:
    with pytest.raises(AttributeError):
        ByValue(1).other = 2  # type: ignore[attr-defined]
