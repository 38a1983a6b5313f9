"""Records are the dataclasses that they look like."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import pickle
import pkgutil
from dataclasses import FrozenInstanceError, field, fields, replace
from typing import Any

import pytest

import mergeloom
from mergeloom.engine.base import records


def _declared(decorator: Any) -> dict[str, Any]:
    """One set of classes, as ``decorator`` makes them."""

    @decorator(frozen=True)
    class Base:
        a: int
        b: list[int] = field(default_factory=list)
        c: str = field(default="c", compare=False, repr=False)

    @decorator(frozen=True)
    class Child(Base):
        d: float = 0.5
        e: int = field(default=7, init=False)

        def __post_init__(self) -> None:
            object.__setattr__(self, "e", self.a + 1)

    @decorator(frozen=True, slots=True)
    class Slots:
        a: int
        nan: float = float("nan")

    @decorator(frozen=True, kw_only=True)
    class Named:
        """Only by name."""

        a: int
        b: int = 2

    @decorator(frozen=True, eq=False)
    class Itself(Named):
        pass

    @decorator(frozen=True)
    class Own:  # noqa: PLW1641  # that one gets its hash is what is tested
        a: int

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Own)

        def __repr__(self) -> str:
            return "own"

    @decorator(frozen=True)
    class Empty:
        pass

    @decorator(frozen=True)
    class One:
        a: Any

    return locals() | {"decorator": None}


OURS, THEIRS = _declared(records.dataclass), _declared(dataclasses.dataclass)
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("Base", (1,), {}),
    ("Base", (1, [2], "d"), {}),
    ("Base", (), {"b": [3], "a": 1}),
    ("Base", (), {}),
    ("Base", (1, 2, 3, 4), {}),
    ("Base", (1,), {"f": 2}),
    ("Child", (1, [1], "x", 2.5), {}),
    ("Child", (1,), {"e": 3}),
    ("Slots", (1,), {}),
    ("Named", (), {"a": 1}),
    ("Named", (1,), {}),
    ("Itself", (), {"a": 1}),
    ("Own", (1,), {}),
    ("Empty", (), {}),
    ("One", ((1, 2),), {}),
    ("One", (float("nan"),), {}),
]


def _outcome(classes: dict[str, Any], name: str, args: Any, given: Any) -> Any:
    kind = classes[name]
    try:
        made, other = kind(*args, **given), kind(*args, **given)
    except TypeError as error:
        return str(error).partition("__init__()")[2]
    try:
        hashed = hash(made) == hash(other)
    except TypeError as error:
        hashed = str(error)
    again = replace(made)
    return (
        repr(made).replace("records.dataclass", ""),
        (made == other, made == made, made == 1, again == made, hashed),  # noqa: PLR0124  # NaN
        dataclasses.asdict(made),
        repr(copy.copy(made)),
        kind.__match_args__,
        [(each.name, each.init, each.kw_only) for each in fields(kind)],
        kind.__init__.__qualname__,
    )


@pytest.mark.parametrize(("name", "args", "given"), CALLS)
def test_a_record_is_made_compared_shown_and_copied_as_a_dataclass(
    name: str, args: tuple[Any, ...], given: dict[str, Any]
) -> None:
    ours = _outcome(OURS, name, args, given)
    assert str(ours) == str(_outcome(THEIRS, name, args, given))


def test_hashes_tell_records_apart() -> None:
    one = OURS["One"]
    assert len({one(1), one(1), one(2)}) == 2
    slots = OURS["Slots"]
    assert len({slots(1, 2.0), slots(1, 2.0), slots(1, 3.0)}) == 2


@pytest.mark.parametrize("name", ["Base", "Slots", "One"])
def test_a_record_cannot_be_changed(name: str) -> None:
    made = OURS[name](1)
    with pytest.raises(FrozenInstanceError, match="assign to field 'a'"):
        made.a = 2
    with pytest.raises(FrozenInstanceError, match="assign to field 'new'"):
        made.new = 2
    with pytest.raises(FrozenInstanceError, match="delete field 'a'"):
        del made.a
    assert made.a == 1
    assert hasattr(made, "__dict__") == (name != "Slots")


def test_a_class_made_of_a_record_has_its_fields_frozen_and_others_not() -> None:
    class More(OURS["Base"]):
        pass

    made = More(1)
    made.other = 3
    assert made.other == 3
    with pytest.raises(FrozenInstanceError):
        made.a = 2


def test_the_standard_librarys_dataclasses_are_made_of_records() -> None:
    @dataclasses.dataclass(frozen=True)
    class Foreign(OURS["Base"]):
        z: int = 9

    assert (Foreign(1).a, Foreign(1).z) == (1, 9)
    assert Foreign(1) == Foreign(1) != Foreign(2)


@records.dataclass(frozen=True, slots=True)
class Kept:
    a: int
    b: str = "b"


def test_a_record_is_pickled() -> None:
    assert pickle.loads(pickle.dumps(Kept(3, "x"))) == Kept(3, "x")


@records.record(frozen=True, slots=True)
class ByValue:
    number: int
    words: tuple[str, ...] = ()


@records.record(frozen=True, slots=True, eq=False)
class ByIdentity:
    number: int


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    number: int
    words: tuple[str, ...] = ()


def test_fast_records_are_equal_and_hashed_as_frozen_dataclasses_are() -> None:
    assert ByValue(1, ("a",)) == ByValue(1, ("a",)) != ByValue(1)
    assert hash(ByValue(1, ("a",))) == hash(Frozen(1, ("a",)))
    assert len({ByIdentity(1), ByIdentity(1)}) == 2
    assert repr(replace(ByValue(1), words=("b",))) == "ByValue(number=1, words=('b',))"


def test_fast_records_have_no_room_for_more() -> None:
    with pytest.raises(AttributeError):
        ByValue(1).other = 2


def is_record(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen


def test_every_record_of_the_program_can_be_made() -> None:
    """What is wrong with a constructor is seen here, not by who makes the first record."""
    seen = 0
    for module in pkgutil.walk_packages(mergeloom.__path__, "mergeloom."):
        if module.name.endswith("__main__") or ".html" in module.name:
            continue
        for kind in vars(importlib.import_module(module.name)).values():
            if isinstance(kind, type) and kind.__module__ == module.name and is_record(kind):
                signature = inspect.signature(records.constructor(kind, True))
                assert len(signature.parameters) >= 1
                seen += 1
    assert seen > 250
