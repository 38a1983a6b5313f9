"""The versions of this program and of what its results depend on."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # it runs from a directory that was never installed
        return "unknown"


VERSION = _version("mergeloom")


def program() -> Mapping[str, str]:
    """Versions by package."""
    return {"mergeloom": VERSION, "torch": _version("torch")}
