"""mergeloom: merges language models that do not fit in memory.

>>> import mergeloom
>>> planned = mergeloom.plan("merge.yml", ram="4GiB")       # headers only, no torch
>>> planned.document()["memory"]["peak_bytes"]
>>> mergeloom.merge(planned, "merged")
"""

from engine.errors import (
    BudgetError,
    CheckpointError,
    ConfigError,
    DeviceError,
    LoomError,
    OutputError,
    RunError,
)
from mergeloom.api import MergeResult, Observer, PlannedMerge, merge, plan
from methods.registry import register as register_method

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
