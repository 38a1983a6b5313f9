"""Read a pickle of tensors without executing it.

A pickle is a program for a stack machine; unpickling runs it and calls any function it names. Here
its instructions (decoded by `pickletools`) are interpreted by a machine that builds only lists,
dictionaries, numbers and text, knows the few functions that rebuild torch tensors, and turns every
other call into an `UnknownObject` value with the name of the callee. Nothing is imported, and no
code from the file is executed.

Protocols 2 to 5 are supported: https://docs.python.org/3/library/pickletools.html
"""

from __future__ import annotations

import codecs
import pickletools
import struct
from collections.abc import Callable
from itertools import islice
from typing import Any

from mergeloom.engine.base.records import dataclass

MAX_INSTRUCTIONS = 40_000_000
MAX_DEPTH = 64
_MAX_SEARCHED = 1000

_MARK = object()
_CODEC = codecs.lookup("raw-unicode-escape")
"""Looked up here, because looking it up while reading a pickle would import a module."""


class PickleFault(Exception):
    """The bytes are not a valid pickle, or a pickle of more than tensors; the text says why."""


@dataclass(frozen=True, slots=True)
class GlobalName:
    """A class or function named in a pickle: ``module.name``."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class UnknownObject:
    """Stands for the result of a call of ``called``, which was not made. ``parts`` are what it was
    given: arguments, state, items."""

    called: str
    parts: list[Any]

    @property
    def has_tensors(self) -> bool:
        """Whether it contains tensors, or is one itself."""
        return contains_tensors(self)


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage referenced by a pickle: the ``key`` of its record, the ``kind`` of storage, and the
    number of elements."""

    key: str
    kind: str
    elements: int


@dataclass(frozen=True, slots=True, eq=False)
class PickledTensor:
    """A tensor; ``offset`` and ``strides`` are in elements of ``dtype``, a torch name."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickle(content: bytes) -> Any:
    """The pickled value, of dictionaries, lists, tuples, numbers, text, `PickledTensor` and
    `UnknownObject`.

    Raises:
        PickleFault: it is malformed, or references storages in an unknown way.
    """
    machine = _StackMachine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if count > MAX_INSTRUCTIONS:
                raise PickleFault("it has too many instructions")
            if opcode.name == "STOP":
                return machine.pop()
            step = _STEPS.get(opcode.name)
            if step is None:
                raise PickleFault(f"it has the unsupported instruction {opcode.name}")
            step(machine, argument)
    except PickleFault:
        raise
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
        UnicodeError,
        struct.error,
    ) as error:
        raise PickleFault(f"it is damaged ({type(error).__name__})") from error
    raise PickleFault("it has no end")


class _StackMachine:
    """The stack and memo of a pickle interpreter."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise PickleFault("it is damaged (a mark instead of a value)")
        return value

    def since_mark(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                found = self.stack[place + 1 :]
                del self.stack[place:]
                return found
        raise PickleFault("it is damaged (no mark)")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def reduce(self, called: Any, arguments: Any) -> None:
        self.push(_call(called, arguments if isinstance(arguments, tuple) else ()))

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                target[_hashable(key)] = value
        else:
            self.append(pairs)

    def append(self, values: list[Any]) -> None:
        """Extend a list, or the parts of an object that was not made."""
        target = self.stack[-1]
        if isinstance(target, UnknownObject):
            target.parts.extend(values)
        elif isinstance(target, list):
            target.extend(values)


def _hashable(key: Any) -> Any:
    """The key of a dictionary entry; keys of other types, unhashable or nested, are replaced."""
    if isinstance(key, (str, int, float, bytes, type(None))):
        return key
    return UnknownObject("a key", [])


def _call(called: Any, arguments: tuple[Any, ...]) -> Any:
    rebuild = _REBUILDS.get(str(called)) if isinstance(called, GlobalName) else None
    if rebuild is None:
        what = str(called) if isinstance(called, GlobalName) else "something unnamed"
        return UnknownObject(what, list(arguments))
    try:
        return rebuild(*arguments)
    except (TypeError, ValueError) as error:
        raise PickleFault(f"it calls {called} with unexpected arguments") from error


def contains_tensors(value: Any) -> bool:
    """Whether a value contains tensors or storages; large values are searched only partly."""
    waiting = [value]
    for _ in range(_MAX_SEARCHED):
        if not waiting:
            break
        item = waiting.pop()
        if isinstance(item, (PickledTensor, StorageRef)):
            return True
        if isinstance(item, UnknownObject):
            if item.called.startswith(_TENSOR_MAKERS):
                return True
            waiting += item.parts[:_MAX_SEARCHED]
        elif isinstance(item, dict):
            waiting += islice(item.values(), _MAX_SEARCHED)
        elif isinstance(item, (tuple, list)):
            waiting += item[:_MAX_SEARCHED]
    return False


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)):
        raise TypeError
    if len(value) > MAX_DEPTH or not all(type(each) is int and each >= 0 for each in value):
        raise ValueError
    return tuple(value)


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    grad: Any = None,
    hooks: Any = None,
    metadata: Any = None,
    *_: Any,
) -> PickledTensor | UnknownObject:
    """A tensor; ``metadata`` says whether its values are negated or conjugated when they are read,
    which its storage does not show."""
    if isinstance(metadata, dict) and any(metadata.values()):
        how = ", ".join(str(key) for key, is_set in metadata.items() if is_set)
        return UnknownObject(f"{_TENSOR_MAKERS[0]}tensor_v2 ({how})", [storage])
    if not isinstance(storage, StorageRef) or type(offset) is not int or offset < 0:
        raise TypeError
    if storage.kind == "UntypedStorage":
        raise ValueError
    return PickledTensor(
        storage, _STORAGES.get(storage.kind, storage.kind), offset, _sizes(shape), _sizes(strides)
    )


def _tensor_with_dtype(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> PickledTensor:
    """Tensors of dtypes without a storage class; the size of their storage is in bytes."""
    if not isinstance(storage, StorageRef) or type(offset) is not int or offset < 0:
        raise TypeError
    if not isinstance(dtype, GlobalName) or dtype.module != "torch":
        raise TypeError
    return PickledTensor(storage, dtype.name, offset, _sizes(shape), _sizes(strides))


def _first_argument(value: Any, *_: Any) -> Any:
    return value


def _subclass_tensor(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """Tensors of a subclass: their data is the result of ``function``."""
    return _call(function, arguments if isinstance(arguments, tuple) else ())


_TENSOR_MAKERS = ("torch._utils._rebuild_", "torch._tensor._rebuild_")
"""What the names of functions that make tensors begin with."""


def _mapping(pairs: Any = (), *_: Any) -> Any:
    found: dict[Any, Any] = {}
    for pair in pairs if isinstance(pairs, (list, tuple)) else ():
        key, value = pair
        found[_hashable(key)] = value
    return found


_REBUILDS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_with_dtype,
    "torch._utils._rebuild_parameter": _first_argument,
    "torch._utils._rebuild_parameter_with_state": _first_argument,
    "torch._tensor._rebuild_from_type_v2": _subclass_tensor,
    "torch._tensor._rebuild_from_type": _subclass_tensor,
    "torch.nn.parameter.Parameter": _first_argument,
    "torch.Size": lambda value=(): tuple(value),
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *_: {},
    "builtins.dict": _mapping,
    "__builtin__.dict": _mapping,
    "builtins.tuple": lambda value=(): tuple(value),
}

_STORAGES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}


def _storage(reference: Any) -> StorageRef:
    """A persistent id of torch pickles: ("storage", class, key, device, elements)."""
    if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage":
        raise PickleFault("it refers to an object that is not a torch storage")
    kind, key, elements = reference[1], reference[2], reference[4]
    if not isinstance(kind, GlobalName) or not isinstance(key, str) or type(elements) is not int:
        raise PickleFault("it has an invalid reference to a torch storage")
    return StorageRef(key, kind.name, elements)


Step = Callable[[_StackMachine, Any], None]


def _literal(machine: _StackMachine, argument: Any) -> None:
    machine.push(argument)


def _constant(value: Any) -> Step:
    return lambda machine, _: machine.push(value)


def _fresh(make: Callable[[], Any]) -> Step:
    return lambda machine, _: machine.push(make())


def _tuple(count: int) -> Step:
    def step(machine: _StackMachine, _: Any) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.push(tuple(reversed(values)))

    return step


def _remember(machine: _StackMachine, argument: Any) -> None:
    machine.memo[argument] = machine.stack[-1]


def _memoize(machine: _StackMachine, _: Any) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _global(machine: _StackMachine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    machine.push(GlobalName(module, name))


def _stack_global(machine: _StackMachine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise PickleFault("it has an invalid class name")
    machine.push(GlobalName(module, name))


def _reduce(machine: _StackMachine, _: Any) -> None:
    arguments, called = machine.pop(), machine.pop()
    machine.reduce(called, arguments)


def _new(machine: _StackMachine, _: Any) -> None:
    arguments, called = machine.pop(), machine.pop()
    machine.reduce(called, arguments)


def _new_with_names(machine: _StackMachine, _: Any) -> None:
    machine.pop()
    _new(machine, _)


def _drop(machine: _StackMachine, _: Any) -> None:
    """Remove the top of the stack."""
    machine.stack.pop()


def _build(machine: _StackMachine, _: Any) -> None:
    """Set the state of an object, which becomes one of its parts."""
    state = machine.pop()
    if isinstance(machine.stack[-1], UnknownObject):
        machine.stack[-1].parts.append(state)


def _extend(machine: _StackMachine, _: Any) -> None:
    machine.append(machine.since_mark())


def _drop_since_mark(machine: _StackMachine, _: Any) -> None:
    machine.since_mark()


def _frozen_set(machine: _StackMachine, _: Any) -> None:
    machine.push(UnknownObject("builtins.frozenset", machine.since_mark()))


def _set_item(machine: _StackMachine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _append(machine: _StackMachine, _: Any) -> None:
    value = machine.pop()
    machine.append([value])


_STEPS: dict[str, Step] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(
        (
            *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT"),
            *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINBYTES"),
            *("SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING", "STRING"),
        ),
        _literal,
    ),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "EMPTY_TUPLE": _constant(()),
    "EMPTY_DICT": _fresh(dict),
    "EMPTY_LIST": _fresh(list),
    "EMPTY_SET": _fresh(lambda: UnknownObject("builtins.set", [])),
    "MARK": _constant(_MARK),
    "POP": _drop,
    "BUILD": _build,
    "POP_MARK": _drop_since_mark,
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "DICT": lambda machine, _: machine.push(
        dict(zip(*[iter(map(_hashable, machine.since_mark()))] * 2, strict=True))
    ),
    "FROZENSET": _frozen_set,
    "APPEND": _append,
    **dict.fromkeys(("APPENDS", "ADDITEMS"), _extend),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _remember),
    "MEMOIZE": _memoize,
    **dict.fromkeys(
        ("GET", "BINGET", "LONG_BINGET"),
        lambda machine, argument: machine.push(machine.memo[argument]),
    ),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _new,
    "NEWOBJ_EX": _new_with_names,
    "BINPERSID": lambda machine, _: machine.push(_storage(machine.pop())),
}
