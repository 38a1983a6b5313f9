"""Names of tensors in a file and in transformers, by the tables of the gguf package."""

from __future__ import annotations

from typing import Any

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.planners.models.gguf.families import KINDS, Family

INSTALL = "install it: pip install mergeloom[gguf]"


def library(why: str) -> Any:
    """The gguf package, which is imported when a file in its format is met.

    Raises:
        CheckpointError: it is not installed; ``why`` says what needs it.
    """
    try:
        import gguf
    except ImportError as error:
        raise CheckpointError(f"{why} needs the package gguf", remedy=INSTALL) from error
    return gguf


def file_names(family: Family, layers: int, why: str) -> dict[str, str]:
    """The name in a file for every tensor that a model of so many layers can have, by its name in
    transformers, in the order of the model.

    Raises:
        CheckpointError: the gguf package is not installed, or does not know a module.
    """
    package = library(why)
    kind = next(
        key for key, name in package.MODEL_ARCH_NAMES.items() if name == family.architecture
    )
    table = package.get_tensor_name_map(kind, layers)
    found = {}
    for module in family.modules(layers):
        name = table.get_name(module)
        if name is None and module != "lm_head":  # gemma has none of its own
            raise CheckpointError(f"{why}: the package gguf has no name for '{module}'")
        found.update({f"{module}.{end}": f"{name}.{end}" for end in KINDS if name is not None})
    return found
