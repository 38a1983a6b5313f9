"""The version of this program, and of the packages that its results depend on."""

from __future__ import annotations

from collections.abc import Mapping

from mergeloom.engine.base.versions import version_of


def _version(package: str) -> str:
    # The program may run from a directory that was never installed.
    return version_of(package) or "unknown"


VERSION = _version("mergeloom")


def program() -> Mapping[str, str]:
    """Versions by package."""
    return {"mergeloom": VERSION, "torch": _version("torch")}
