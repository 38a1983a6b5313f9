"""Packages of others that are not installed."""

from __future__ import annotations

from mergeloom.engine.base.errors import LoomError

_DISTRIBUTIONS = {"google": "protobuf", "yaml": "pyyaml"}
"""Names for pip, of packages that are imported by another name."""


def missing_package(error: ImportError) -> LoomError | None:
    """The error for a module that is not installed; ``None`` if it is one of this program."""
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package in ("", "mergeloom"):
        return None
    return LoomError(
        f"the package '{package}' is not installed",
        remedy=f"pip install {_DISTRIBUTIONS.get(package, package)}",
        code="missing-package",
    )
