"""The interface between merge methods and planners: what a method declares and returns."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from mergeloom.engine.base.errors import ConfigError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Kernel


class Required(enum.Enum):
    """The default of a parameter that must be given."""

    REQUIRED = "required"

    def __repr__(self) -> str:
        return self.value


REQUIRED = Required.REQUIRED


class Base(enum.Enum):
    """What a method does with a base model."""

    NONE = "not used"
    OPTIONAL = "optional"
    REQUIRED = "required"


class ParameterError(ConfigError):
    """Resolved parameters that a method cannot use; the planner adds the tensor and the place."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method.

    ``kind`` is the type of a resolved value: `float`, `int`, `bool` or `str`. A number must be in
    ``[minimum, maximum]``, where ``None`` is unbounded. A value outside ``usual`` is allowed, but
    the plan warns of it. A string must be one of ``choices``.
    """

    name: str
    kind: type
    help: str
    default: Any = REQUIRED
    minimum: float | None = None
    maximum: float | None = None
    usual: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()

    def check(self, value: object) -> float | int | bool | str | None:
        """Return ``value`` converted to ``kind``.

        Raises:
            ParameterError: it has the wrong type or is outside the range.
        """
        if value is None and self.default is None:
            return None
        if self.kind is str:
            if not isinstance(value, str) or value not in self.choices:
                raise ParameterError(
                    f"'{self.name}' must be {self.range_text()}, not {_shown(value)}"
                )
            return value
        if self.kind is bool:
            if not isinstance(value, bool):
                raise ParameterError(f"'{self.name}' must be true or false, not {_shown(value)}")
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ParameterError(f"'{self.name}' must be a number, not {_shown(value)}")
        if not math.isfinite(value):
            raise ParameterError(f"'{self.name}' must be finite, not {_shown(value)}")
        if self.kind is int and value != int(value):
            raise ParameterError(f"'{self.name}' must be a whole number, not {_shown(value)}")
        low, high = self.minimum, self.maximum
        if (low is not None and value < low) or (high is not None and value > high):
            raise ParameterError(
                f"'{self.name}' must lie in {self.range_text()}, not {_shown(value)}"
            )
        return int(value) if self.kind is int else float(value)

    def range_text(self) -> str:
        """The allowed range as text, or ``"any"``."""
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return " or ".join(self.choices)
        if self.minimum is None and self.maximum is None:
            return "any"
        low = "(-inf" if self.minimum is None else f"[{self.minimum:g}"
        high = "inf)" if self.maximum is None else f"{self.maximum:g}]"
        return f"{low}, {high}"


def _shown(value: Any) -> str:
    """A value as a configuration writes it."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


@dataclass(frozen=True, slots=True)
class TensorMerge:
    """One output tensor for which a method supplies the kernel.

    ``models`` has the resolved per-model parameters of each input. Every declared parameter is
    present, except for a base that is not listed as a model. ``base`` is the position of the base
    among the inputs, or ``None``. ``settings`` has the resolved global parameters, ``seed`` is the
    seed of the run.
    """

    tensor: str
    shape: tuple[int, ...]
    models: tuple[Mapping[str, Any], ...]
    base: int | None
    settings: Mapping[str, Any]
    seed: int = 0

    @property
    def others(self) -> tuple[int, ...]:
        """Positions of the inputs that are not the base."""
        return tuple(i for i in range(len(self.models)) if i != self.base)

    def weights(self, parameter: str = "weight") -> tuple[float, ...]:
        """The value of ``parameter`` for each input that is not the base, in order."""
        return tuple(self.models[i][parameter] for i in self.others)


class Method:
    """A merge method. Subclasses define the class attributes and `kernel`.

    ``works`` describes the access pattern of the kernel and its statistics in words. ``draws`` says
    whether it draws random numbers from the seed of the run. ``by_name`` says whether `kernel` may
    use the name of the tensor; otherwise tensors of equal shape and parameters share a kernel.
    ``minimum`` and ``maximum`` bound the number of models besides the base. A tensor that only one
    of several models has is copied by the planner and does not reach `kernel`; so is one of a slice
    that has one model, unless ``merges_one`` is set.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    formula: ClassVar[str]
    reference: ClassVar[str]
    works: ClassVar[str] = ""
    draws: ClassVar[bool] = False
    by_name: ClassVar[bool] = True
    model_parameters: ClassVar[tuple[Parameter, ...]] = ()
    settings: ClassVar[tuple[Parameter, ...]] = ()
    base: ClassVar[Base] = Base.NONE
    minimum: ClassVar[int] = 1
    maximum: ClassVar[int | None] = None
    merges_one: ClassVar[bool] = False

    def kernel(self, merge: TensorMerge) -> Kernel:
        """Return the kernel for one output tensor; its inputs are in the order of ``merge.models``.

        Raises:
            ParameterError: the parameters are valid one by one but not together.
        """
        raise NotImplementedError
