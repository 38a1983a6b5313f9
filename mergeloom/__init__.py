"""mergeloom: merges language models that do not fit in memory.

>>> import mergeloom
>>> planned = mergeloom.plan("merge.yml", ram="4GiB")       # headers only, no torch
>>> planned.report.memory.peak_bytes
>>> mergeloom.merge(planned, "merged")
"""

from importlib import import_module
from types import FunctionType
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
    from mergeloom.api import LoomWarning, Observer, merge, plan
    from mergeloom.exporting import export
    from mergeloom.extracting import extract, plan_extract
    from mergeloom.methods.registry import register as register_method
    from mergeloom.queries import (
        clean,
        diff,
        diff_inputs,
        explain,
        explain_lines,
        init,
        inspect,
        list_methods,
        read_details,
        read_report,
        schema,
        status,
        verify,
    )
    from mergeloom.report.output_records import Progress
    from mergeloom.results import MergeResult, PlannedMerge
    from mergeloom.running import RunningMerge, start
    from mergeloom.transplanting import plan_transplant, transplant
    from mergeloom.version import VERSION as __version__

__all__ = [
    "BudgetError",
    "CheckpointError",
    "ConfigError",
    "DeviceError",
    "LoomError",
    "LoomWarning",
    "MergeResult",
    "Observer",
    "OutputError",
    "PlannedMerge",
    "Progress",
    "RunError",
    "RunningMerge",
    "__version__",
    "clean",
    "diff",
    "diff_inputs",
    "explain",
    "explain_lines",
    "export",
    "extract",
    "init",
    "inspect",
    "list_methods",
    "merge",
    "plan",
    "plan_extract",
    "plan_transplant",
    "read_details",
    "read_report",
    "register_method",
    "schema",
    "start",
    "status",
    "transplant",
    "verify",
]

_IN_API = frozenset({"LoomWarning", "Observer", "merge", "plan"})
_ELSEWHERE = {
    "export": ("mergeloom.exporting", "export"),
    "plan_extract": ("mergeloom.extracting", "plan_extract"),
    "extract": ("mergeloom.extracting", "extract"),
    "register_method": ("mergeloom.methods.registry", "register"),
    "Progress": ("mergeloom.report.output_records", "Progress"),
    "MergeResult": ("mergeloom.results", "MergeResult"),
    "PlannedMerge": ("mergeloom.results", "PlannedMerge"),
    "RunningMerge": ("mergeloom.running", "RunningMerge"),
    "start": ("mergeloom.running", "start"),
    "plan_transplant": ("mergeloom.transplanting", "plan_transplant"),
    "transplant": ("mergeloom.transplanting", "transplant"),
    "__version__": ("mergeloom.version", "VERSION"),
}


def __getattr__(name: str) -> Any:
    """Import names on first use, so that the command line starts quickly and can be interrupted."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module, attribute = _ELSEWHERE.get(
        name, ("mergeloom.api" if name in _IN_API else "mergeloom.queries", name)
    )
    found = getattr(import_module(module), attribute)
    if not isinstance(found, FunctionType) or name == "register_method":
        return found
    from mergeloom.calls import public

    return public(found)


def __dir__() -> list[str]:
    return __all__
