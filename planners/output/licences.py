"""The licences stated in model cards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import yaml

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.folder import Folder

_CARD_FILE = "README.md"
_MAX_CARD_BYTES = 4 << 20
"""Maximum size of a model card in bytes; larger ones are ignored."""
_MAX_LENGTH = 200


@dataclass(frozen=True)
class Licence:
    """A licence: its identifier on the hub, or ``other`` with a name. ``link`` is a URL and does
    not take part in comparisons."""

    identifier: str
    name: str | None = None
    link: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return self.name or self.identifier

    @property
    def fields(self) -> dict[str, str]:
        """The front-matter keys of a model card for this licence."""
        named = {"license_name": self.name, "license_link": self.link}
        return {"license": self.identifier} | {k: v for k, v in named.items() if v is not None}


def licence_of(folder: Folder) -> Licence | None:
    """The licence named in the model card in ``folder``; ``None`` if there is none."""
    return licence_from(front_matter(folder))


def licence_from(front: Mapping[str, Any]) -> Licence | None:
    """The licence named in a model card's front matter."""
    found = front.get("license")
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not is_usable(found):
        return None
    name, link = front.get("license_name"), front.get("license_link")
    if found != "other" or not is_usable(name):
        return Licence(found)
    # A path relative to the model's repository is not valid in the output's.
    absolute = is_usable(link) and link.startswith("https://")
    return Licence(found, name, link if absolute else None)


def is_usable(text: Any) -> TypeGuard[str]:
    """Whether a value of a front matter may be copied into another's: one short line."""
    return isinstance(text, str) and text.isprintable() and 0 < len(text) <= _MAX_LENGTH


def front_matter(folder: Folder) -> Mapping[str, Any]:
    """The front matter of the model card in ``folder``: the YAML between its first two lines of
    dashes; empty if there is none, or it is not a mapping."""
    if not folder.has(_CARD_FILE):
        return {}
    try:
        text = folder.read(_CARD_FILE, _MAX_CARD_BYTES).decode("utf-8", "replace")
    except CheckpointError:  # a model card is optional
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
