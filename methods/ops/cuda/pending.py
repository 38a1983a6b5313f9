"""Results that a device has not computed yet: they can be added now and fetched later."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mergeloom.engine.graph.sums import Sums

if TYPE_CHECKING:
    import numpy as np


class Pending:
    """The result of ``get``, a number or `Sums`; call it once the device has done its work."""

    __slots__ = ("_get",)

    def __init__(self, get: Callable[[], Any]) -> None:
        self._get = get

    def cpu(self) -> Any:
        """The value."""
        return self._get()

    def __add__(self, other: Any) -> Pending:
        return Pending(lambda: self._get() + value_of(other))

    def __radd__(self, other: Any) -> Pending:
        return Pending(lambda: value_of(other) + self._get())

    def __float__(self) -> float:
        return float(self._get())

    def __int__(self) -> int:
        return int(self._get())


def value_of(number: Any) -> Any:
    """The number, or the value of a `Pending`."""
    return number.cpu() if isinstance(number, Pending) else number


def number_at(address: int, owner: object) -> Pending:
    """The float64 number at an address in main memory; ``owner`` keeps that memory alive."""
    return Pending(lambda: (owner, ctypes.c_double.from_address(address).value)[1])


def sums_at(address: int, count: int, owner: object) -> Pending:
    """``count`` such numbers."""
    return Pending(lambda: (owner, Sums((ctypes.c_double * count).from_address(address)))[1])


class PendingArray:
    """``count`` numbers of 4 bytes at an address in main memory that ``owner`` keeps alive.

    ``kind`` is the numpy dtype string.
    """

    __slots__ = ("_address", "_count", "_kind", "_owner")

    def __init__(self, address: int, count: int, kind: str, owner: object) -> None:
        self._address = address
        self._count = count
        self._kind = kind
        self._owner = owner

    def cpu(self) -> np.ndarray[Any, Any]:
        """The numbers."""
        import numpy as np

        return np.frombuffer(ctypes.string_at(self._address, 4 * self._count), self._kind)
