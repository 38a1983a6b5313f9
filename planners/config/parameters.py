"""Parameters: values that depend on tensor and layer, and which of several levels supplies them.

A value is a scalar, a gradient over the layers, or a list of ``{filter, value}`` entries. Levels
are asked in order of precedence; the first that yields a value for a tensor wins.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import field
from typing import Any

from mergeloom.engine.base.errors import ConfigError, Place
from mergeloom.engine.base.records import dataclass
from mergeloom.methods.declare import REQUIRED, Parameter, ParameterError


@dataclass(frozen=True, slots=True)
class Entry:
    """One value with the filter that admits it: a substring of tensor names, ``None`` for all.

    ``value`` is a scalar, or a tuple for a gradient.
    """

    filter: str | None
    value: Any
    place: Place

    def admits(self, tensor: str) -> bool:
        return self.filter is None or self.filter in tensor

    @property
    def values(self) -> tuple[Any, ...]:
        """The scalar, or those of the gradient."""
        return self.value if isinstance(self.value, tuple) else (self.value,)


@dataclass(frozen=True, slots=True)
class Parameters:
    """One ``parameters`` block: entries by parameter name, in the order in which they are tried.

    It has only parameters of the document's method that have an effect in this block.
    """

    entries: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Level:
    """A parameters block and what it belongs to: ``model``, ``slice``, ``module``, ``global``."""

    name: str
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class Resolved:
    """A value for one tensor, and why: ``entry`` of ``level`` supplied it (``None``: default).

    ``t`` is the place in a gradient that the value was read at, ``None`` for a scalar.
    """

    value: Any
    level: str
    entry: Entry | None
    t: float | None


def resolve(
    parameter: Parameter, levels: Sequence[Level], tensor: str, t: float
) -> Resolved | None:
    """The value of ``parameter`` for ``tensor`` at place ``t`` of its slice, from 0 to 1.

    ``None`` if no level supplies one.

    Raises:
        ConfigError: the value is not one that the parameter takes.
    """
    for level in levels:
        for entry in level.parameters.entries.get(parameter.name, ()):
            if entry.admits(tensor):
                value, used = _at(entry.value, t)
                try:
                    checked = parameter.check(value)
                except ParameterError as error:
                    raise error.at(entry.place) from error
                return Resolved(checked, level.name, entry, used)
    return None


class Resolution:
    """Values of several parameters, found once for all tensors for which they are the same.

    That is decided by which filters of ``levels`` admit a tensor and, where a value is a gradient,
    by the tensor's place in it.
    """

    def __init__(self, parameters: Sequence[Parameter], levels: Sequence[Level]) -> None:
        self._parameters = parameters
        self._levels = levels
        blocks = [level.parameters.entries for level in levels]
        entries = [e for p in parameters for block in blocks for e in block.get(p.name, ())]
        self._filters = tuple(dict.fromkeys(e.filter for e in entries if e.filter is not None))
        self._graded = any(isinstance(entry.value, tuple) for entry in entries)
        self._found: dict[Hashable, tuple[Mapping[str, Resolved], Parameter | None]] = {}

    def of(self, tensor: str, t: float) -> tuple[Mapping[str, Resolved], Parameter | None]:
        """Every parameter that has a value or a default for ``tensor`` at place ``t`` of its slice;
        and the first that has none, if any.

        Raises:
            ConfigError: a value is not one that its parameter takes.
        """
        admitted = tuple([text in tensor for text in self._filters]) if self._filters else ()
        key = admitted, t if self._graded else None
        found = self._found.get(key)
        if found is None:
            values = {}
            for parameter in self._parameters:
                value = resolve(parameter, self._levels, tensor, t)
                if value is None and parameter.default is not REQUIRED:
                    value = Resolved(parameter.default, "default", None, None)
                if value is not None:
                    values[parameter.name] = value
            lacking = next((p for p in self._parameters if p.name not in values), None)
            found = self._found[key] = values, lacking
        return found

    def place(self, parameter: Parameter) -> Place | None:
        """Where the parameter's entry of the highest level is, if there is one."""
        for level in self._levels:
            for entry in level.parameters.entries.get(parameter.name, ()):
                return entry.place
        return None


def at_gradient(values: Sequence[float], t: float) -> float:
    """Piecewise linear interpolation of equally spaced ``values`` at ``t`` from 0 to 1."""
    position = t * (len(values) - 1)
    index = min(int(position), len(values) - 2) if len(values) > 1 else 0
    if len(values) == 1:
        return values[0]
    share = position - index
    return (1 - share) * values[index] + share * values[index + 1]


def required(
    parameter: Parameter,
    model: str | None,
    tensor: str,
    place: Place,
    filtered: Place | None = None,
) -> ConfigError:
    """The error for a parameter that no level supplies; ``filtered`` is where entries are whose
    filters do not admit the tensor."""
    whose = f" of model '{model}'" if model is not None else ""
    remedy = "add it" if filtered is None else "add '- value: ...', which holds for all others"
    return ConfigError(
        f"'{parameter.name}'{whose} has no value for tensor '{tensor}'",
        place=filtered or place,
        remedy=remedy,
        code="missing-parameter",
    )


def _at(value: Any, t: float) -> tuple[Any, float | None]:
    if not isinstance(value, tuple):
        return value, None
    if all(is_number(item) for item in value):
        return at_gradient(value, t), t
    return value[int(t * (len(value) - 1))], t


def is_number(value: Any) -> bool:
    """Whether ``value`` is a number that can be interpolated."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
