"""Versions of installed packages.

Replaces `importlib.metadata`, because importing that and parsing the complete metadata of a package
takes as long as planning a merge of a small model.
"""

from __future__ import annotations

import os
import re
import sys

_BETWEEN_WORDS = re.compile(r"[-_.]+")


def version_of(package: str) -> str | None:
    """The version of an installed package; ``None`` if it is not installed.

    It is recorded in the file METADATA of the folder ``NAME-VERSION.dist-info`` next to the package
    (Python packaging specifications, "Recording installed projects").
    """
    wanted = _normalised(package)
    for folder in sys.path:
        try:
            names = os.listdir(folder or os.curdir)
        except OSError:
            continue
        for name in names:
            stem, _, suffix = name.rpartition(".")
            if suffix == "dist-info" and _normalised(stem.partition("-")[0]) == wanted:
                return _version_in(os.path.join(folder, name, "METADATA"))
    return None


def _normalised(name: str) -> str:
    """The normalised name of a package, equal for all its spellings."""
    return _BETWEEN_WORDS.sub("_", name).lower()


def _version_in(path: str) -> str | None:
    """The version in a METADATA file; ``None`` if it cannot be read or has none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key == "Version":
                    return value.strip()
                if not line.strip():
                    break
    except OSError:
        pass
    return None
