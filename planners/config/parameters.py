"""Parameters whose values depend on tensor and layer, and the levels that supply them.

A value is a scalar, a gradient over the layers, or a list of ``{filter, value}`` entries. Levels
are tried in order of precedence; the first that has a value for a tensor wins.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import field
from typing import Any

from mergeloom.engine.base.errors import ConfigError, Place
from mergeloom.engine.base.records import dataclass
from mergeloom.methods.declare import REQUIRED, Parameter, ParameterError


@dataclass(frozen=True, slots=True)
class ParameterEntry:
    """One value with a filter: a substring of tensor names, or ``None`` for all tensors.

    ``value`` is a scalar, or a tuple for a gradient.
    """

    filter: str | None
    value: Any
    place: Place

    def matches(self, tensor: str) -> bool:
        return self.filter is None or self.filter in tensor

    @property
    def values(self) -> tuple[Any, ...]:
        """The scalar, or the values of the gradient."""
        return self.value if isinstance(self.value, tuple) else (self.value,)


@dataclass(frozen=True, slots=True)
class Parameters:
    """One ``parameters`` block: the entries of each parameter, in the order they are tried.

    Contains only parameters of the document's method that have an effect in this block.
    """

    entries: Mapping[str, tuple[ParameterEntry, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Level:
    """A parameters block, and the name of its level: ``model``, ``slice``, ``module`` or
    ``global``."""

    name: str
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class ResolvedValue:
    """A value for one tensor and its origin: ``entry`` of ``level`` (``None`` for the default).

    ``t`` is the position in the gradient (0 to 1), ``None`` for a scalar.
    """

    value: Any
    level: str
    entry: ParameterEntry | None
    t: float | None


def resolve(
    parameter: Parameter, levels: Sequence[Level], tensor: str, t: float
) -> ResolvedValue | None:
    """The value of ``parameter`` for ``tensor`` at position ``t`` (0 to 1) of its slice.

    ``None`` if no level supplies one.

    Raises:
        ConfigError: the value is not valid for the parameter.
    """
    for level in levels:
        for entry in level.parameters.entries.get(parameter.name, ()):
            if entry.matches(tensor):
                value, used = _value_at(entry.value, t)
                try:
                    checked = parameter.check(value)
                except ParameterError as error:
                    raise error.at(entry.place) from error
                return ResolvedValue(checked, level.name, entry, used)
    return None


class ParameterResolver:
    """Resolves several parameters, once for all tensors that get the same values.

    The values depend on the filters that match the tensor and, for gradients, on its position in
    the slice.
    """

    def __init__(self, parameters: Sequence[Parameter], levels: Sequence[Level]) -> None:
        self._parameters = parameters
        self._levels = levels
        blocks = [level.parameters.entries for level in levels]
        entries = [e for p in parameters for block in blocks for e in block.get(p.name, ())]
        self._filters = tuple(dict.fromkeys(e.filter for e in entries if e.filter is not None))
        self._has_gradient = any(isinstance(entry.value, tuple) for entry in entries)
        self._found: dict[Hashable, tuple[Mapping[str, ResolvedValue], Parameter | None]] = {}

    @property
    def varies(self) -> bool:
        """Whether the values depend on tensor or position."""
        return self._has_gradient or bool(self._filters)

    def key(self, tensor: str, t: float) -> Hashable:
        """A key that is equal for tensors with the same values."""
        return tuple([text in tensor for text in self._filters]), t if self._has_gradient else None

    def of(self, tensor: str, t: float) -> tuple[Mapping[str, ResolvedValue], Parameter | None]:
        """Every parameter with a value or default for ``tensor`` at position ``t`` of its slice,
        and the first parameter without one, if any.

        Raises:
            ConfigError: a value is not valid for its parameter.
        """
        key = self.key(tensor, t)
        found = self._found.get(key)
        if found is None:
            values = {}
            for parameter in self._parameters:
                value = resolve(parameter, self._levels, tensor, t)
                if value is None and parameter.default is not REQUIRED:
                    value = ResolvedValue(parameter.default, "default", None, None)
                if value is not None:
                    values[parameter.name] = value
            lacking = next((p for p in self._parameters if p.name not in values), None)
            found = self._found[key] = values, lacking
        return found

    def place(self, parameter: Parameter) -> Place | None:
        """The place of the parameter's entry at the highest level that has one."""
        for level in self._levels:
            for entry in level.parameters.entries.get(parameter.name, ()):
                return entry.place
        return None


def gradient_value(values: Sequence[float], t: float) -> float:
    """Piecewise linear interpolation of equally spaced ``values`` at ``t`` from 0 to 1."""
    position = t * (len(values) - 1)
    index = min(int(position), len(values) - 2) if len(values) > 1 else 0
    if len(values) == 1:
        return values[0]
    share = position - index
    return (1 - share) * values[index] + share * values[index + 1]


def missing_value_error(
    parameter: Parameter,
    model: str | None,
    tensor: str,
    place: Place,
    filtered: Place | None = None,
) -> ConfigError:
    """The error for a parameter that no level supplies. ``filtered`` is the place of entries whose
    filters do not match the tensor, if there are any."""
    whose = f" of model '{model}'" if model is not None else ""
    remedy = "add it" if filtered is None else "add '- value: ...', which applies to all others"
    return ConfigError(
        f"'{parameter.name}'{whose} has no value for tensor '{tensor}'",
        place=filtered or place,
        remedy=remedy,
        code="missing-parameter",
    )


def _value_at(value: Any, t: float) -> tuple[Any, float | None]:
    if not isinstance(value, tuple):
        return value, None
    if all(is_number(item) for item in value):
        return gradient_value(value, t), t
    return value[int(t * (len(value) - 1))], t


def is_number(value: Any) -> bool:
    """Whether ``value`` is a number that can be interpolated."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
