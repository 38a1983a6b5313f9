"""A tower as described by its model's configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from mergeloom.engine.base.records import dataclass
from mergeloom.planners.models.architecture import Tower
from mergeloom.planners.output.layers import keys
from mergeloom.planners.output.layers.families import FAMILIES, KEYS
from mergeloom.planners.output.layers.homes import Home, Path, at, homes, values, words
from mergeloom.planners.output.layers.rules import Kinds, Rule


@dataclass(frozen=True)
class Description:
    """The description of one tower in its model's configuration.

    ``home`` is the location of the description, ``None`` if there is none.
    """

    model: str
    config: Mapping[str, Any]
    tower: Tower
    home: Home | None

    @property
    def depth(self) -> int:
        return self.tower.layers

    @cached_property
    def place(self) -> Mapping[str, Any]:
        """The object that describes the tower; empty if there is none."""
        found: Mapping[str, Any] = at(self.config, self.home.path) if self.home else {}
        return found

    @cached_property
    def family(self) -> str:
        """The ``model_type`` whose rules apply: the object's own, or that of an enclosing
        object."""
        if self.home is None:
            return ""
        path = self.home.path
        for length in range(len(path), -1, -1):
            name = at(self.config, path[:length]).get("model_type")
            if isinstance(name, str):
                below = {word for key in path[length:] for word in words(key)}
                senses = {"vision", "audio"} & {word for key in path for word in words(key)}
                own = below <= {"text", "thinker"} and senses <= set(words(name))
                return name if own else f"{name}.{path[-1]}"
        return ""

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """The rules that determine the kind of each layer."""
        known = FAMILIES.get(self.family)
        if known is None:
            known = tuple(
                rule
                for key, rule in KEYS.items()
                if self.place.get(key) is not None and not self.lists(rule.name)
            )
        if self.home is None:
            return ()
        return tuple(
            rule
            for rule in known
            if (self.home.head if not rule.side else rule.side == self.home.side)
        )

    @property
    def predicting(self) -> int:
        """Number of additional layers that predict further tokens (MTP), if stated."""
        value = self.place.get(self.predicting_key)
        return value if isinstance(value, int) and not isinstance(value, bool) else 0

    @property
    def predicting_key(self) -> str:
        """The key for that number."""
        return next((key for key in keys.PREDICTING if key in self.place), keys.PREDICTING[0])

    def lists(self, name: str) -> bool:
        """Whether the property ``name`` is listed for each layer."""
        given = (self.place.get(key) for key in (name, keys.ALIASES.get(name, name)))
        return any(isinstance(value, list) and len(value) > 0 for value in given)

    def rule(self, name: str) -> Rule | None:
        """The rule for a property, if there is one."""
        return next((rule for rule in self.rules if rule.name == name), None)

    def entries(self, path: Path, key: str) -> Sequence[Any] | None:
        """The property ``key`` of each layer: from a list (at ``path`` within the object), else by
        rule, else one value for all."""
        inner = values(self.place, path)
        if (found := _listed(inner, key, self.depth)) is not None:
            return found
        rule = self.rule(key)
        if rule is not None and rule.listed and not path:
            return rule.of(self.place, self.depth)
        value = inner.get(key)
        return None if value is None or isinstance(value, list | str) else [value] * self.depth

    def kinds(self, name: str) -> Kinds | None:
        """The kind of each layer for a property with a rule."""
        rule = self.rule(name)
        if rule is None or rule.listed:
            found = self.entries((), name)
            return None if found is None else list(found)
        return rule.of(self.place, self.depth)

    def numbers(self, path: Path, key: str) -> list[int] | None:
        """The layer numbers in the list ``key``, counted from 0."""
        return keys.numbers(key, values(self.place, path), self.depth)

    def by_number(self, path: Path, key: str) -> Mapping[int, Any]:
        """An object with layer numbers as keys."""
        value = values(self.place, path).get(key)
        if not isinstance(value, Mapping) or not keys.is_by_number(key, value, self.depth):
            return {}
        return {int(number): item for number, item in value.items()}

    def ruled(self, config: Mapping[str, Any], depth: int) -> dict[str, Kinds]:
        """For each property with a rule, the kinds of ``depth`` layers with ``config`` instead of
        the model's own: as listed, or else by the rule."""
        place = at(config, self.home.path) if self.home else {}
        found = {}
        for rule in self.rules:
            listed = _listed(place, rule.name, depth) if rule.listed else None
            kinds = listed or rule.of(place, depth)
            if kinds is not None and len(kinds) == depth:
                found[rule.name] = list(kinds)
        return found


def _listed(place: Mapping[str, Any], key: str, depth: int) -> list[Any] | None:
    """The list of the property ``key``, under any of its names."""
    for name in (key, keys.ALIASES.get(key)):
        if name is not None and (found := keys.entries(name, place.get(name), depth)):
            return found
    return None


def describe(model: str, config: Mapping[str, Any], towers: Sequence[Tower]) -> list[Description]:
    """The description of each tower in ``config``, the main tower first."""
    found = homes(config, towers)
    return [
        Description(model, config, tower, home) for tower, home in zip(towers, found, strict=True)
    ]
