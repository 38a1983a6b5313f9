"""What runs leave to those to come on this machine: one small file in the user's cache.

It is a hint. That it cannot be read or written is no matter, and nobody vouches for what stands in
it: whoever takes something out checks that it makes sense.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mergeloom.engine.base.bounded_json import parse

_LIMIT = 64 << 10


def recall(section: str) -> Any:
    """What was kept as ``section``; ``None`` if nothing was."""
    return _content().get(section)


def keep(section: str, value: Any) -> None:
    """Keep ``value``, which is plain data, in place of what was kept as ``section``."""
    content = json.dumps({**_content(), section: value})
    if len(content) > _LIMIT:  # never so by what is kept here, but by what others wrote
        content = json.dumps({section: value})
    try:
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(content)
        os.replace(temporary, path)
    except (OSError, RuntimeError):  # there may be no home
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
    """Where this program keeps what can be had anew.

    Raises:
        RuntimeError: there is no home.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "mergeloom"
