"""The licences of models, as their model cards say them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.folder import Folder

_CARD = "README.md"
_LARGEST = 4 << 20
"""Bytes of a model card, at most: of a larger one nothing is known."""
_LONGEST = 100


def licence_of(folder: Folder) -> str | None:
    """The licence that the model card in ``folder`` names: its identifier on the hub, or the name
    of one of its own; ``None`` where it names none."""
    front = _front_matter(folder)
    found = front.get("license")
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if found == "other" and isinstance(front.get("license_name"), str):
        found = front["license_name"]
    usable = isinstance(found, str) and found.isprintable() and 0 < len(found) <= _LONGEST
    return str(found) if usable else None


def _front_matter(folder: Folder) -> Mapping[str, Any]:
    """What stands between the first two lines of dashes; nothing where that is no mapping."""
    if not folder.has(_CARD):
        return {}
    try:
        text = folder.read(_CARD, _LARGEST).decode("utf-8", "replace")
    except CheckpointError:  # nobody has to have a model card
        return {}
    begin, _, rest = text.lstrip("\ufeff").partition("\n")
    if begin.strip() != "---":
        return {}
    lines: list[str] = []
    for line in rest.splitlines():
        if line.strip() == "---":
            break
        lines.append(line)
    try:
        found = yaml.safe_load("\n".join(lines))
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
