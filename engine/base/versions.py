"""Versions of installed packages, asked for at every start.

`importlib.metadata` finds them too; importing it and reading all that a package says of itself
takes as long as planning a merge of a small model.
"""

from __future__ import annotations

import os
import re
import sys

_BETWEEN_WORDS = re.compile(r"[-_.]+")


def version_of(package: str) -> str | None:
    """The version of an installed package; ``None`` where it is not installed.

    Installers keep it in a folder ``NAME-VERSION.dist-info`` beside the package, in the file
    METADATA ("Recording installed projects" of the Python packaging specifications).
    """
    wanted = _plain(package)
    for place in sys.path:
        try:
            names = os.listdir(place or os.curdir)
        except OSError:
            continue
        for name in names:
            stem, _, kind = name.rpartition(".")
            if kind == "dist-info" and _plain(stem.partition("-")[0]) == wanted:
                return _recorded(os.path.join(place, name, "METADATA"))
    return None


def _plain(name: str) -> str:
    """A package's name as all spellings of it have it."""
    return _BETWEEN_WORDS.sub("_", name).lower()


def _recorded(path: str) -> str | None:
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
