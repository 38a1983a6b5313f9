"""The registry of planners: built-in, registered, and offered by other packages.

A top-level key of a document selects its planner. A package offers planners through entry points in
the group ``mergeloom.planners``; the entry point's name is the key, its value a `Planner` class:

    [project.entry-points."mergeloom.planners"]
    my_key = "my_package.my_module:MyPlanner"

A program calls `register` before it plans. The module of a planner is imported when a document
needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, TypeVar

from mergeloom.engine.base.errors import ConfigError
from mergeloom.planners.config.keys import CONFIGURATION
from mergeloom.planners.config.weight_names import names_files
from mergeloom.planners.config.yaml_values import Value
from mergeloom.planners.planner import Planner

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "mergeloom.planners"
"""Entry-point group for planners of other packages."""

MERGE_KEY = "merge_method"
"""The key of ordinary merges; the key of another planner takes precedence."""

WEIGHTS_KEY = "tensors"
"""The key for merging plain weights; not needed if weight files are named."""

_BUILT_IN = {
    WEIGHTS_KEY: "mergeloom.planners.state_dicts.planner:StateDictPlanner",
    "adapters": "mergeloom.planners.adapters.planner:AdaptersPlanner",
    "extract": "mergeloom.planners.extraction.planner:ExtractionPlanner",
    MERGE_KEY: "mergeloom.planners.slices.planner:SlicesPlanner",
}

_registered: dict[str, Planner[Any]] = {}
_loaded: dict[str, Planner[Any]] = {}

P = TypeVar("P", bound="type[Planner[Any]]")


def register(planner: P) -> P:
    """Register a planner class under its key; usable as a decorator.

    Raises:
        ConfigError: it is not a planner, or its key is taken.
    """
    instance = _checked_instance(planner, "the registered object")
    if instance.key in CONFIGURATION.keys or instance.key in keys():
        raise ConfigError(
            f"the key '{instance.key}' is already in use", remedy="choose another one"
        )
    _registered[instance.key] = instance
    return planner


def unregister(key: str) -> None:
    """Remove a planner added by `register`."""
    _registered.pop(key, None)


def keys() -> tuple[str, ...]:
    """The keys of all planners, sorted."""
    return tuple(sorted({*_BUILT_IN, *_registered, *_entry_points()}))


def planner_for(value: Value) -> Planner[Any]:
    """The planner selected by the keys of a document; by default that of merges.

    Raises:
        ConfigError: the document is not a mapping, or the planner cannot be imported.
    """
    document = value.mapping("a configuration")
    found = document.keys() - {MERGE_KEY}
    key = next((key for key in _BUILT_IN if key in found), None)
    if key is None and found - CONFIGURATION.keys - CONFIGURATION.ignored:
        key = next((key for key in (*_registered, *_entry_points()) if key in found), None)
    if key is None and names_files(document):
        key = WEIGHTS_KEY
    return get(key or MERGE_KEY)


def get(key: str) -> Planner[Any]:
    """The planner for ``key``.

    Raises:
        ConfigError: there is none, or it cannot be imported.
    """
    if key in _registered:
        return _registered[key]
    if key not in _loaded:
        _loaded[key] = _load(key)
    return _loaded[key]


def _load(key: str) -> Planner[Any]:
    if key in _BUILT_IN:
        module, _, attribute = _BUILT_IN[key].partition(":")
        return _checked_instance(getattr(importlib.import_module(module), attribute), f"'{key}'")
    entry_point = _entry_points().get(key)
    if entry_point is None:
        raise ConfigError(f"there is no planner for the key '{key}'")
    try:
        found = entry_point.load()
    except Exception as error:
        raise ConfigError(
            f"the planner for '{key}' cannot be loaded from '{entry_point.value}': {error}"
        ) from error
    return _checked_instance(found, f"entry point '{key}' ('{entry_point.value}')")


def _entry_points() -> dict[str, EntryPoint]:
    """Entry points of planners in other packages, by key."""
    from importlib.metadata import entry_points

    return {
        point.name: point
        for point in entry_points(group=ENTRY_POINT_GROUP)
        if point.name not in _BUILT_IN and point.name not in CONFIGURATION.keys
    }


def _checked_instance(planner: Any, what: str) -> Planner[Any]:
    if not (isinstance(planner, type) and issubclass(planner, Planner)):
        raise ConfigError(
            f"{what} is not a planner: "
            "it must be a class that derives from mergeloom.planners.planner.Planner"
        )
    instance = planner()
    if not isinstance(getattr(instance, "key", None), str):
        raise ConfigError(f"{what} lacks the class attribute 'key'")
    return instance
