"""What the towers of an output are made of, and the configuration that is being made for them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import field
from typing import Any

from mergeloom.engine.base.errors import Finding
from mergeloom.engine.base.records import dataclass
from mergeloom.planners.output.layers.described import Description
from mergeloom.planners.output.layers.homes import Path, at, inner


@dataclass(frozen=True, slots=True)
class Origin:
    """A layer of a tower of some model, as its configuration describes it."""

    of: Description
    layer: int

    def __str__(self) -> str:
        return f"layer {self.layer} of '{self.of.model}'"


@dataclass(frozen=True, slots=True)
class Restacked:
    """What one tower of the output is made of: ``origins[i]`` is the layer that output layer i
    stands for (the donor's, where the donor has a part in it), ``merged[i]`` all that it is
    merged from. ``donor`` is the tower of the model that the configuration is from. ``beyond`` is
    the number of layers behind the last that predict further tokens."""

    name: str
    donor: Description
    origins: tuple[Origin, ...]
    merged: tuple[tuple[Origin, ...], ...] = ()
    beyond: int = 0

    @property
    def depth(self) -> int:
        """Layers of the output's tower."""
        return len(self.origins)

    @property
    def unchanged(self) -> bool:
        """Whether every output layer stands for the donor's layer of the same number."""
        own = [origin.layer if origin.of is self.donor else -1 for origin in self.origins]
        return own == list(range(self.donor.depth))


@dataclass(frozen=True)
class Rewritten:
    """A configuration and what is to be said of it.

    ``notes`` say what was changed, ``warnings`` what may not be as meant, each in one line;
    ``refusals`` why the output cannot be described.
    """

    config: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refusals: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class Edit:
    """The rewriting of what a configuration says of one tower, ``tower``, of all ``towers``."""

    result: Rewritten
    tower: Restacked
    towers: Sequence[Restacked]

    @property
    def donor(self) -> Description:
        return self.tower.donor

    @property
    def path(self) -> Path:
        """Where the configuration describes the tower."""
        return self.donor.home.path if self.donor.home is not None else ()

    @property
    def place(self) -> dict[str, Any]:
        """The object that describes the tower, as far as it is rewritten."""
        found: dict[str, Any] = at(self.result.config, self.path)
        return found

    def inner(self) -> list[Path]:
        """Paths within the object to objects that speak of the same tower, and of it alone."""
        home = self.donor.home
        if home is None or not home.head:
            return []
        return list(inner(self.donor.config, home, [other.donor.home for other in self.towers]))

    def set(self, path: Path, key: str, value: Any, said: str | None = None) -> None:
        """Set ``key`` of the object at ``path``, from the whole configuration on, and say so."""
        place = at(self.result.config, path)
        if key in place and place[key] == value and type(place[key]) is type(value):
            return
        old = _short(place[key]) if key in place else "not given"
        place[key] = copy.deepcopy(value)
        said = said or f"{old} -> {_short(value)}"
        self.result.notes.append(f"{name(path, key)}: {said}")

    def warn(self, line: str) -> None:
        if line not in self.result.warnings:
            self.result.warnings.append(line)

    def refuse(self, cause: str, remedy: str) -> None:
        found = Finding(cause, None, remedy, "layers")
        if found not in self.result.refusals:
            self.result.refusals.append(found)


def name(path: Path, key: str) -> str:
    """A key of a configuration with the keys that lead to it."""
    return ".".join((*path, key))


def _short(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) or value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
