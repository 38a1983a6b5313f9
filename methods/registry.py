"""The registry of merge methods: built-in ones, registered ones, and those of other packages.

A package offers methods through entry points in the group ``mergeloom.methods``. The entry
point's name is the method's name, its value a `Method` class or instance:

    [project.entry-points."mergeloom.methods"]
    my_method = "my_package.my_module:MyMethod"

A program calls `register` before it plans. The module of a method is imported when the method is
first used, and does not import torch before arithmetic runs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, TypeVar

from mergeloom.engine.base.errors import ConfigError
from mergeloom.engine.base.suggest import suggest
from mergeloom.methods.declare import Method

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "mergeloom.methods"
"""Entry-point group for methods of other packages."""

_BUILT_IN = {
    "arcee_fusion": "mergeloom.methods.catalog.arcee_fusion:ArceeFusion",
    "breadcrumbs": "mergeloom.methods.catalog.breadcrumbs:Breadcrumbs",
    "breadcrumbs_ties": "mergeloom.methods.catalog.breadcrumbs:BreadcrumbsTies",
    "dare_linear": "mergeloom.methods.catalog.dare:DareLinear",
    "dare_ties": "mergeloom.methods.catalog.dare:DareTies",
    "della": "mergeloom.methods.catalog.della:Della",
    "della_linear": "mergeloom.methods.catalog.della:DellaLinear",
    "karcher": "mergeloom.methods.catalog.karcher:Karcher",
    "linear": "mergeloom.methods.catalog.linear:Linear",
    "model_stock": "mergeloom.methods.catalog.model_stock:ModelStock",
    "multislerp": "mergeloom.methods.catalog.multislerp:MultiSlerp",
    "nearswap": "mergeloom.methods.catalog.nearswap:NearSwap",
    "nuslerp": "mergeloom.methods.catalog.nuslerp:NuSlerp",
    "passthrough": "mergeloom.methods.catalog.passthrough:Passthrough",
    "ram": "mergeloom.methods.catalog.ram:Ram",
    "ramplus_tl": "mergeloom.methods.catalog.ram:RamPlus",
    "sce": "mergeloom.methods.catalog.sce:Sce",
    "slerp": "mergeloom.methods.catalog.slerp:Slerp",
    "task_arithmetic": "mergeloom.methods.catalog.task_arithmetic:TaskArithmetic",
    "ties": "mergeloom.methods.catalog.ties:Ties",
}

_registered: dict[str, Method] = {}
_loaded: dict[str, Method] = {}

M = TypeVar("M", bound="Method | type[Method]")


def register(method: M) -> M:
    """Register ``method``, a class or an instance, under its name; usable as a decorator.

    Raises:
        ConfigError: it is not a method, or its name is taken.
    """
    instance = _instance(method, "the registered object")
    if instance.name in names():
        raise ConfigError(
            f"merge method '{instance.name}' already exists", remedy="choose another name"
        )
    _registered[instance.name] = instance
    return method


def unregister(name: str) -> None:
    """Remove a method added by `register`."""
    _registered.pop(name, None)


def names() -> tuple[str, ...]:
    """The names of all methods, sorted."""
    return tuple(sorted({*_BUILT_IN, *_registered, *_entry_points()}))


def known(name: str) -> bool:
    """Whether there is a method called ``name``."""
    return name in _BUILT_IN or name in _registered or name in _entry_points()


def get(name: str) -> Method:
    """Return the method called ``name``.

    Raises:
        ConfigError: there is no such method, or its package cannot be imported.
    """
    if name in _registered:
        return _registered[name]
    if name not in _loaded:
        _loaded[name] = _load(name)
    return _loaded[name]


def _load(name: str) -> Method:
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return _instance(getattr(importlib.import_module(module), attribute), f"'{name}'")
    point = _entry_points().get(name)
    if point is None:
        raise ConfigError(
            f"unknown merge method '{name}'", remedy=suggest(name, names()), code="unknown-method"
        )
    try:
        found = point.load()
    except Exception as error:
        raise ConfigError(
            f"merge method '{name}' cannot be loaded from '{point.value}': {error}"
        ) from error
    return _instance(found, f"entry point '{name}' ('{point.value}')")


def _entry_points() -> dict[str, EntryPoint]:
    """Entry points of methods in other packages, by name."""
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP) if point.name not in _BUILT_IN}


def _instance(method: Any, what: str) -> Method:
    instance = method() if isinstance(method, type) else method
    if not isinstance(instance, Method):
        raise ConfigError(
            f"{what} is not a merge method: it must derive from mergeloom.methods.declare.Method"
        )
    missing = [
        attribute
        for attribute in ("name", "summary", "formula", "reference")
        if not isinstance(getattr(instance, attribute, None), str)
    ]
    if missing:
        raise ConfigError(f"{what} lacks the class attribute '{missing[0]}'")
    return instance
