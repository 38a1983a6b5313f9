"""Tensor names in GGUF and in transformers, from the tables of the gguf package."""

from __future__ import annotations

from typing import Any

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.planners.models.gguf.families import EXPERT, HEAD, KINDS, LAYER, OUTSIDE, Family

INSTALL = "install it: pip install mergeloom[gguf]"


def library(why: str) -> Any:
    """Import the gguf package, on first use.

    Raises:
        CheckpointError: it is not installed; ``why`` names what needs it.
    """
    try:
        import gguf
    except ImportError as error:
        raise CheckpointError(f"{why} needs the package gguf", remedy=INSTALL) from error
    return gguf


def file_names(family: Family, layers: int, experts: int, why: str) -> dict[str, str]:
    """The name in a file for every tensor that a model of so many layers can have, by its name in
    transformers, in the order of the model. Of a mixture of so many ``experts`` those of one layer
    have one name in a file.

    Raises:
        CheckpointError: the gguf package is not installed, or does not know a module.
    """
    package = library(why)
    kind = next(
        key for key, name in package.MODEL_ARCH_NAMES.items() if name == family.architecture
    )
    table = package.get_tensor_name_map(kind, 1)

    def named(module: str) -> str:
        name = table.get_name(module.replace(EXPERT, "."))
        if name is None:
            raise CheckpointError(f"{why}: the package gguf has no name for '{module}'")
        return str(name)

    first = LAYER.format(0)
    called = {name: named(name) for name in OUTSIDE if table.get_name(name) or name != HEAD}
    inside = [
        (module.replace(EXPERT, f".{expert}."), named(first + module))
        for module in family.layer
        for expert in range(experts if EXPERT in module else 1)
    ]
    for layer in range(layers):
        place = LAYER.format(layer)
        called |= {
            place + name: file_name.replace("blk.0.", f"blk.{layer}.") for name, file_name in inside
        }
    return {f"{ours}.{end}": f"{name}.{end}" for ours, name in called.items() for end in KINDS}
