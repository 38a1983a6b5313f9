"""mergeloom: merges language models that do not fit in memory.

>>> import mergeloom
>>> planned = mergeloom.plan("merge.yml", ram="4GiB")       # headers only, no torch
>>> planned.document()["memory"]["peak_bytes"]
>>> mergeloom.merge(planned, "merged")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.errors import (
    BudgetError,
    CheckpointError,
    ConfigError,
    DeviceError,
    LoomError,
    OutputError,
    RunError,
)

if TYPE_CHECKING:
    from mergeloom.api import Observer, merge, plan
    from mergeloom.methods.registry import register as register_method
    from mergeloom.results import MergeResult, PlannedMerge

__all__ = [
    "BudgetError",
    "CheckpointError",
    "ConfigError",
    "DeviceError",
    "LoomError",
    "MergeResult",
    "Observer",
    "OutputError",
    "PlannedMerge",
    "RunError",
    "merge",
    "plan",
    "register_method",
]


def __getattr__(name: str) -> Any:
    """What is not imported yet: the command line begins, and can be interrupted, without it."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    if name == "register_method":
        return import_module("mergeloom.methods.registry").register
    return getattr(import_module("mergeloom.api"), name)


def __dir__() -> list[str]:
    return __all__
