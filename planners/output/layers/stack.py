"""The layers an output's towers consist of, and the configuration being rewritten for them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import field
from typing import Any

from mergeloom.engine.base.errors import Finding
from mergeloom.engine.base.records import dataclass
from mergeloom.planners.output.layers.described import Description
from mergeloom.planners.output.layers.locations import Path, object_at, paths_about


@dataclass(frozen=True, slots=True)
class SourceLayer:
    """A source layer: a layer of a tower of some model."""

    description: Description
    layer: int

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The tensors of the layer, without those that belong to its position."""
        return self.description.tower.suffixes[self.layer]

    def __str__(self) -> str:
        return f"layer {self.layer} of '{self.description.model}'"


@dataclass(frozen=True, slots=True)
class RestackedTower:
    """The layers of one tower of the output: ``origins[i]`` is the source layer of output layer i
    (the donor's, if it is among the merged ones), ``merged[i]`` all layers it is merged from.
    ``donor`` is the tower of the model that provides the configuration. ``beyond`` is the number
    of layers after the last that predict further tokens."""

    name: str
    donor: Description
    origins: tuple[SourceLayer, ...]
    merged: tuple[tuple[SourceLayer, ...], ...] = ()
    beyond: int = 0

    @property
    def depth(self) -> int:
        """Number of layers of the output's tower."""
        return len(self.origins)

    @property
    def is_unchanged(self) -> bool:
        """Whether the source of every output layer is the donor's layer of the same number."""
        own = [origin.layer if origin.description is self.donor else -1 for origin in self.origins]
        return own == list(range(self.donor.depth))

    def moved_to(self, layer: int) -> list[SourceLayer]:
        """The main source of an output layer, and sources of another number merged with it."""
        origin = self.origins[layer]
        merged = self.merged[layer] if self.merged else ()
        return [origin, *(source for source in merged if source.layer != origin.layer)]


@dataclass(frozen=True)
class RewrittenConfig:
    """A rewritten configuration, with notes and findings.

    ``notes`` describe changes and ``warnings`` doubts, one line each; ``refusals`` say why the
    output cannot be described.
    """

    config: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refusals: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class Edit:
    """Rewriting of the settings of ``tower``, one of ``towers``, in a configuration."""

    result: RewrittenConfig
    tower: RestackedTower
    towers: Sequence[RestackedTower]

    @property
    def donor(self) -> Description:
        return self.tower.donor

    @property
    def path(self) -> Path:
        """The path of the object that describes the tower."""
        return self.donor.location.path if self.donor.location is not None else ()

    @property
    def section(self) -> dict[str, Any]:
        """The object that describes the tower, in its current state."""
        found: dict[str, Any] = object_at(self.result.config, self.path)
        return found

    def paths(self) -> list[Path]:
        """Relative paths of objects about this tower only."""
        location = self.donor.location
        if location is None or not location.takes_unnamed:
            return []
        return list(
            paths_about(
                self.donor.config, location, [other.donor.location for other in self.towers]
            )
        )

    def set(self, path: Path, key: str, value: Any, said: str | None = None) -> None:
        """Set ``key`` of the object at the absolute ``path``, and add a note."""
        section = object_at(self.result.config, path)
        if key in section and section[key] == value and type(section[key]) is type(value):
            return
        old = _short(section[key]) if key in section else "not given"
        section[key] = copy.deepcopy(value)
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
    """The full name of a configuration key."""
    return ".".join((*path, key))


def _short(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) or value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
