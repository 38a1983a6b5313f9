"""A tower as described by its model's configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from mergeloom.engine.base.records import dataclass
from mergeloom.planners.models.architecture import Tower
from mergeloom.planners.output.layers import keys
from mergeloom.planners.output.layers.families import RULES_BY_FAMILY, RULES_BY_KEY
from mergeloom.planners.output.layers.locations import (
    Path,
    TowerLocation,
    locate_towers,
    nested_object,
    object_at,
    words,
)
from mergeloom.planners.output.layers.rules import Kinds, Rule


@dataclass(frozen=True)
class Description:
    """The description of one tower in its model's configuration.

    ``location`` is the location of the description, ``None`` if there is none.
    """

    model: str
    config: Mapping[str, Any]
    tower: Tower
    location: TowerLocation | None

    @property
    def depth(self) -> int:
        return self.tower.layers

    @cached_property
    def section(self) -> Mapping[str, Any]:
        """The object that describes the tower; empty if there is none."""
        found: Mapping[str, Any] = (
            object_at(self.config, self.location.path) if self.location else {}
        )
        return found

    @cached_property
    def family(self) -> str:
        """The ``model_type`` whose rules apply: the object's own, or that of an enclosing
        object."""
        if self.location is None:
            return ""
        path = self.location.path
        for length in range(len(path), -1, -1):
            name = object_at(self.config, path[:length]).get("model_type")
            if isinstance(name, str):
                below = {word for key in path[length:] for word in words(key)}
                senses = {"vision", "audio"} & {word for key in path for word in words(key)}
                own = below <= {"text", "thinker"} and senses <= set(words(name))
                return name if own else f"{name}.{path[-1]}"
        return ""

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """The rules that determine the kind of each layer."""
        known = RULES_BY_FAMILY.get(self.family)
        if known is None:
            known = tuple(
                rule
                for key, rule in RULES_BY_KEY.items()
                if self.section.get(key) is not None and not self.lists(rule.name)
            )
        if self.location is None:
            return ()
        return tuple(
            rule
            for rule in known
            if (self.location.takes_unnamed if not rule.side else rule.side == self.location.side)
        )

    @property
    def number_of_predictors(self) -> int:
        """Number of additional layers that predict further tokens (MTP), if stated."""
        value = self.section.get(self.predicting_key)
        return value if isinstance(value, int) and not isinstance(value, bool) else 0

    @property
    def predicting_key(self) -> str:
        """The key for that number."""
        return next(
            (key for key in keys.PREDICTOR_KEYS if key in self.section), keys.PREDICTOR_KEYS[0]
        )

    def lists(self, name: str) -> bool:
        """Whether the property ``name`` is listed for each layer."""
        given = (self.section.get(key) for key in (name, keys.ALIASES.get(name, name)))
        return any(isinstance(value, list) and len(value) > 0 for value in given)

    def rule(self, name: str) -> Rule | None:
        """The rule for a property, if there is one."""
        return next((rule for rule in self.rules if rule.name == name), None)

    def entries(self, path: Path, key: str) -> Sequence[Any] | None:
        """The property ``key`` of each layer: from a list (at ``path`` within the object), else by
        rule, else one value for all."""
        inner = nested_object(self.section, path)
        if (found := _listed(inner, key, self.depth)) is not None:
            return found
        rule = self.rule(key)
        if rule is not None and rule.listed and not path:
            return rule.of(self.section, self.depth)
        value = inner.get(key)
        return None if value is None or isinstance(value, list | str) else [value] * self.depth

    def kinds(self, name: str) -> Kinds | None:
        """The kind of each layer for a property with a rule."""
        rule = self.rule(name)
        if rule is None or rule.listed:
            found = self.entries((), name)
            return None if found is None else list(found)
        return rule.of(self.section, self.depth)

    def numbers(self, path: Path, key: str) -> list[int] | None:
        """The layer numbers in the list ``key``, counted from 0."""
        return keys.numbers(key, nested_object(self.section, path), self.depth)

    def by_number(self, path: Path, key: str) -> Mapping[int, Any]:
        """An object with layer numbers as keys."""
        value = nested_object(self.section, path).get(key)
        if not isinstance(value, Mapping) or not keys.is_by_number(key, value, self.depth):
            return {}
        return {int(number): item for number, item in value.items()}

    def ruled(self, config: Mapping[str, Any], depth: int) -> dict[str, Kinds]:
        """For each property with a rule, the kinds of ``depth`` layers with ``config`` instead of
        the model's own: as listed, or else by the rule."""
        section = object_at(config, self.location.path) if self.location else {}
        found = {}
        for rule in self.rules:
            listed = _listed(section, rule.name, depth) if rule.listed else None
            kinds = listed or rule.of(section, depth)
            if kinds is not None and len(kinds) == depth:
                found[rule.name] = list(kinds)
        return found


def _listed(section: Mapping[str, Any], key: str, depth: int) -> list[Any] | None:
    """The list of the property ``key``, under any of its names."""
    for name in (key, keys.ALIASES.get(key)):
        if name is not None and (found := keys.entries(name, section.get(name), depth)):
            return found
    return None


def describe(model: str, config: Mapping[str, Any], towers: Sequence[Tower]) -> list[Description]:
    """The description of each tower in ``config``, the main tower first."""
    found = locate_towers(config, towers)
    return [
        Description(model, config, tower, location)
        for tower, location in zip(towers, found, strict=True)
    ]
