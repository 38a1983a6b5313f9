"""Tensor names in GGUF and in transformers, from the tables of the gguf package."""

from __future__ import annotations

from typing import Any

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.planners.models.gguf.families import (
    EXPERT_PLACEHOLDER,
    HEAD,
    LAYER,
    OUTSIDE,
    WEIGHT_AND_BIAS,
    Family,
)

INSTALL = "install it: pip install 'mergeloom[gguf]'"


def gguf_package(why: str) -> Any:
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
    """The names in a file of all tensors that a model may have, by their names in transformers, in
    the order of the model.

    ``layers`` and ``experts`` are the numbers of layers, and of experts in a layer; the experts of
    a layer have one name in a file. ``why`` begins messages.

    Raises:
        CheckpointError: the gguf package is not installed, or does not know a module.
    """
    package = gguf_package(why)
    kind = next(
        key for key, name in package.MODEL_ARCH_NAMES.items() if name == family.architecture
    )
    table = package.get_tensor_name_map(kind, 1)

    def file_name_of(module: str) -> str:
        name = table.get_name(module.replace(EXPERT_PLACEHOLDER, "."))
        if name is None:
            raise CheckpointError(
                f"{why}: the package gguf has no name for '{module}'",
                remedy="install a newer one (pip install -U gguf)",
            )
        return str(name)

    first = LAYER.format(0)
    our_names = {
        name: file_name_of(name) for name in OUTSIDE if table.get_name(name) or name != HEAD
    }
    inside = [
        (module.replace(EXPERT_PLACEHOLDER, f".{expert}."), file_name_of(first + module))
        for module in family.layer
        for expert in range(experts if EXPERT_PLACEHOLDER in module else 1)
    ]
    for layer in range(layers):
        place = LAYER.format(layer)
        our_names |= {
            place + name: file_name.replace("blk.0.", f"blk.{layer}.") for name, file_name in inside
        }
    return {
        f"{our_name}.{end}": f"{name}.{end}"
        for our_name, name in our_names.items()
        for end in WEIGHT_AND_BIAS
    }
