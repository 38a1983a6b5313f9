"""Immutable records: dataclasses that share methods and compile their constructor on first use.

For each frozen dataclass, the standard library generates and compiles six methods, which takes half
a millisecond; start-up creates hundreds of classes, and a merge uses a third of them. Here `==`,
`hash`, `repr` and the guards against assignment are shared functions, and ``__init__`` is generated
when the first record is created. For `fields`, `replace`, `asdict`, subclasses and type checkers,
these classes are ordinary dataclasses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

__all__ = ["GENERATED", "dataclass", "record"]

GENERATED = "<constructor of a record>"
"""The file name of generated constructors in tracebacks."""

if TYPE_CHECKING:
    from dataclasses import dataclass
    from dataclasses import dataclass as record
else:

    def dataclass(cls=None, /, *, frozen=False, eq=True, repr=True, **options):
        """`dataclasses.dataclass`, with shared methods if ``frozen``."""

        def decorate(cls):
            if not frozen:
                return dataclasses.dataclass(eq=eq, repr=repr, **options)(cls)
            return _make_record(cls, eq, repr, options, guarded=True)

        return decorate if cls is None else decorate(cls)

    def record(*, frozen, slots, eq=True):
        """The same for records created by the hundred thousand, such as those for each tensor.

        A frozen dataclass sets each field by a function call, which makes creation four times as
        slow. Here immutability is enforced only by the type checker, not at run time.
        """

        def decorate(cls):
            return _make_record(cls, eq, True, {"slots": slots}, guarded=False, hashed=frozen)

        return decorate


def _is_frozen(record: Any) -> bool:
    return bool(record.__dataclass_params__.frozen)


def _make_record(
    cls: type,
    eq: bool,
    has_repr: bool,
    options: dict[str, Any],
    *,
    guarded: bool,
    hashed: bool = True,
) -> type:
    bases = [base for base in cls.__mro__[1:] if dataclasses.is_dataclass(base)]
    inherits = any(_is_frozen(base) for base in bases)
    guarded = guarded or inherits
    own = vars(cls)
    methods: dict[str, Any] = dict(_GUARDS) if guarded else {}
    written: Any = cls.__repr__
    if has_repr and written in (object.__repr__, _repr):  # another one is inherited
        methods["__repr__"] = _repr
    generates = "__init__" not in own
    doc, cls.__doc__ = cls.__doc__, "given"  # else `dataclasses` documents the wrong signature
    process = dataclasses.dataclass(init=False, repr=False, eq=False, frozen=inherits, **options)
    made: Any = process(cls)
    made.__doc__ = doc
    made.__dataclass_params__.frozen = guarded
    if eq:
        equal, value = _comparison_methods(made)
        if "__eq__" not in own:
            methods["__eq__"] = equal
        if own.get("__hash__") is None:
            methods["__hash__"] = value if hashed else None
    for name, method in methods.items():
        setattr(made, name, method)
    if generates:
        made.__init__ = _constructor_on_first_use(made, guarded)
    return cast("type", made)


def _comparison_methods(cls: Any) -> tuple[Callable[..., Any], Callable[..., int]]:
    """``__eq__`` and ``__hash__`` of a record."""
    names = [each.name for each in dataclasses.fields(cls) if each.compare]
    values: Callable[[Any], Any]
    if len(names) > 1:
        values = attrgetter(*names)
    else:

        def values(self: Any) -> Any:
            return tuple(getattr(self, name) for name in names)

    def __eq__(self: Any, other: Any) -> Any:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return values(self) == values(other)

    def __hash__(self: Any) -> int:
        return hash(values(self))

    return __eq__, __hash__


def _constructor_on_first_use(cls: Any, guarded: bool) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__ = constructor(cls, guarded)
        cls.__init__(self, *args, **kwargs)

    return __init__


def constructor(cls: Any, guarded: bool) -> Callable[..., None]:
    """The ``__init__`` of a record, with one parameter per field. Fields of ``guarded`` records
    cannot be assigned to."""
    scope: dict[str, Any] = {"_set": object.__setattr__, "_MISSING": MISSING}
    positional: list[str] = []
    keywords: list[str] = []
    body: list[str] = []
    for each in dataclasses.fields(cls):
        name, parameter, value = each.name, each.name, each.name
        if each.default is not MISSING:
            scope[f"_default_{name}"] = each.default
            parameter = f"{name}=_default_{name}"
        elif each.default_factory is not MISSING:
            scope[f"_make_{name}"] = each.default_factory
            parameter = f"{name}=_MISSING"
            value = f"_make_{name}() if {name} is _MISSING else {name}"
        if each.init:
            (keywords if each.kw_only else positional).append(parameter)
        elif each.default is not MISSING:
            value = f"_default_{name}"
        elif each.default_factory is not MISSING:
            value = f"_make_{name}()"
        else:
            continue
        body.append(f" _set(self, {name!r}, {value})" if guarded else f" self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append(" self.__post_init__()")
    parameters = ", ".join(["self", *positional, *(["*", *keywords] if keywords else [])])
    code = "\n".join([f"def __init__({parameters}):", *(body or [" pass"])])
    exec(compile(code, GENERATED, "exec"), scope)
    made: Callable[..., None] = scope["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    made.__module__ = cls.__module__
    return made


def _repr(self: Any) -> str:
    shown = (
        f"{each.name}={getattr(self, each.name)!r}"
        for each in dataclasses.fields(self)
        if each.repr
    )
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _is_field(self: Any, name: str) -> bool:
    """Whether an attribute is a field of the record; subclasses may have other attributes."""
    kind = type(self)
    return "__dataclass_fields__" in vars(kind) or name in kind.__dataclass_fields__


def _no_assignment(self: Any, name: str, value: Any) -> None:
    if _is_field(self, name):
        raise FrozenInstanceError(f"cannot assign to field {name!r}")
    object.__setattr__(self, name, value)


def _no_deletion(self: Any, name: str) -> None:
    if _is_field(self, name):
        raise FrozenInstanceError(f"cannot delete field {name!r}")
    object.__delattr__(self, name)


def _state(self: Any) -> dict[str, Any]:
    """The state for copying and pickling."""
    names = (each.name for each in dataclasses.fields(self))
    found = {name: getattr(self, name) for name in names if hasattr(self, name)}
    return {**getattr(self, "__dict__", {}), **found}


def _set_state(self: Any, state: dict[str, Any]) -> None:
    for name, value in state.items():
        object.__setattr__(self, name, value)


_GUARDS = {
    "__setattr__": _no_assignment,
    "__delattr__": _no_deletion,
    "__getstate__": _state,
    "__setstate__": _set_state,
}
"""Methods that make records immutable, but allow copying and pickling."""
