"""Compile loops to machine code; a program that `engine.hardware.machine_code` starts.

python -m mergeloom.methods.ops.loops.build DIRECTORY NAME ...
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from llvmlite import binding
from numba import cfunc, types

from mergeloom.engine.hardware.machine_code import (
    FLOAT,
    INT,
    NOTHING,
    CompiledFunction,
    host_processor,
    target_machine,
)
from mergeloom.methods.ops.loops.blocks import Loop

_MODULES = (
    *("adjust", "arrange", "choose", "combine", "convert", "count", "leading", "product"),
    *("quantise", "softmax", "sum", "tables"),
)

_KINDS = {"int": INT, "Address": INT, "float": FLOAT, "None": NOTHING}
_TYPES = {INT: types.int64, FLOAT: types.float64, NOTHING: types.void}

_INTERPRETER_CALLS = re.compile(
    r"^declare (.* @(?:numba_|NRT_|_?Py)\w+\(.*\)[^#\n]*)(?:#\d+)?$", re.MULTILINE
)
_TRAP = r"define \1 {\n  call void @llvm.trap()\n  unreachable\n}"


def loops() -> Iterator[tuple[str, Loop]]:
    """All loops with their names."""
    for name in _MODULES:
        for key, value in vars(import_module(f"mergeloom.methods.ops.loops.{name}")).items():
            if isinstance(value, Loop):
                yield key, value


def build(name: str, function: Any) -> CompiledFunction:
    """Compile one loop for this processor."""
    signature = inspect.signature(function)
    arguments = "".join(_KINDS[each.annotation] for each in signature.parameters.values())
    result = _KINDS[signature.return_annotation]
    typed = _TYPES[result](*(_TYPES[kind] for kind in arguments))
    compiled = cfunc(typed, error_model="numpy")(function)
    module = binding.parse_assembly(_standalone(compiled.inspect_llvm()))
    module.verify()
    cpu, features = host_processor()
    return CompiledFunction(
        *(name, compiled.native_name, arguments, result, cpu, features),
        code=target_machine().emit_object(module),
    )


def _standalone(assembly: str) -> str:
    """LLVM assembly that needs neither numba nor Python: calls into them are replaced.

    Such calls are only reached for arrays owned by numba and for exceptions, which loops do not
    have. Each becomes a trap, which ends the process.
    """
    return _INTERPRETER_CALLS.sub(_TRAP, assembly)


def main(arguments: Sequence[str]) -> None:
    """Compile the named loops and save them in a directory."""
    directory, *names = arguments
    found = dict(loops())
    for name in names:
        compiled_function = build(name, found[name].function)
        compiled_function.load()  # a crash while loading must happen here, not in a merge
        compiled_function.save(Path(directory))


if __name__ == "__main__":
    main(sys.argv[1:])
