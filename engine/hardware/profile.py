"""Measurements kept for future runs on this machine: one small file in the user's cache directory.

It is only a hint: failures to read or write it are ignored, and its contents are not trusted, so
callers validate what they read.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mergeloom.engine.base.bounded_json import parse

_LIMIT = 64 << 10


def load_section(section: str) -> Any:
    """The stored value of ``section``; ``None`` if there is none."""
    return _content().get(section)


def save_section(section: str, value: Any) -> None:
    """Store ``value``, which is plain data, as ``section``."""
    content = json.dumps({**_content(), section: value})
    if len(content) > _LIMIT:  # only if others wrote to it
        content = json.dumps({section: value})
    try:
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(content)
        os.replace(temporary, path)
    except (OSError, RuntimeError):  # there may be no home directory
        pass


def _content() -> dict[str, Any]:
    try:
        path = _path()
        if not path.is_file():
            return {}
        with open(path, "rb") as file:
            content = file.read(_LIMIT + 1)
        found = parse(content, _LIMIT) if len(content) <= _LIMIT else None
    except (OSError, RuntimeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _path() -> Path:
    return cache_directory() / "profile.json"


def cache_directory() -> Path:
    """The cache directory of this program.

    Raises:
        RuntimeError: there is no home directory.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "mergeloom"
