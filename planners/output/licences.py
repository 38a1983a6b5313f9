"""The licences of models, as their model cards say them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import yaml

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.folder import Folder

_CARD = "README.md"
_LARGEST = 4 << 20
"""Bytes of a model card, at most: of a larger one nothing is known."""
_LONGEST = 200


@dataclass(frozen=True)
class Licence:
    """A licence: its identifier on the hub, ``other`` for one that the hub does not know, which
    then has a name. ``link`` is an address, and no part of what it is."""

    identifier: str
    name: str | None = None
    link: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return self.name or self.identifier

    @property
    def fields(self) -> dict[str, str]:
        """The keys of a model card's front matter that say it."""
        named = {"license_name": self.name, "license_link": self.link}
        return {"license": self.identifier} | {k: v for k, v in named.items() if v is not None}


def licence_of(folder: Folder) -> Licence | None:
    """The licence that the model card in ``folder`` names; ``None`` where it names none."""
    front = _front_matter(folder)
    found = front.get("license")
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not _is_usable(found):
        return None
    name, link = front.get("license_name"), front.get("license_link")
    if found != "other" or not _is_usable(name):
        return Licence(found)
    # A path in the model's own repository is none in the output's.
    absolute = _is_usable(link) and link.startswith("https://")
    return Licence(found, name, link if absolute else None)


def _is_usable(text: Any) -> TypeGuard[str]:
    return isinstance(text, str) and text.isprintable() and 0 < len(text) <= _LONGEST


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
