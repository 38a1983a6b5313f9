"""Formatting and parsing of sizes and durations."""

from __future__ import annotations

import re

from mergeloom.engine.base.errors import LoomError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{prefix}i": 1 << (10 * power) for power, prefix in enumerate("KMGT", 1)}


def parse_size(text: str) -> int:
    """Bytes of a size such as ``8GiB``, ``8G``, ``8GB``, ``500M`` or ``1000000``.

    Raises:
        LoomError: it is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgGtT]?i?)[bB]?\s*", text)
    unit = match[2][:1].upper() + match[2][1:] if match else ""
    if match is None or unit not in _UNITS or len(text) > 40:
        raise LoomError(
            f"{text[:40]!r} is not a size", remedy="write for example 8GiB, 500M or bytes"
        )
    size = int(float(match[1]) * _UNITS[unit])
    if size <= 0:
        raise LoomError(f"{text!r} is not a size", remedy="it must be positive")
    return size


def memory_text(nbytes: float) -> str:
    """A memory size in binary units: ``512 MiB``, ``3.4 GiB``."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= scale:
            value = nbytes / scale
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{nbytes:.0f} bytes"


def data_text(nbytes: float) -> str:
    """A size of data in decimal units, as disks and hubs count: ``4.94 GB``."""
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= scale:
            return (
                f"{nbytes / scale:.3g} {unit}"
                if nbytes < 100 * scale
                else f"{nbytes / scale:.0f} {unit}"
            )
    return f"{nbytes:.0f} bytes"


def count_text(number: int) -> str:
    """A number of parameters: ``10.73 B``, ``124.4 M``."""
    for unit, scale in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= scale:
            value = number / scale
            return f"{value:.2f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return str(number)


def duration_text(seconds: float) -> str:
    """A duration: ``4.2 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
