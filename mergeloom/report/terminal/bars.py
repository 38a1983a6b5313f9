"""Small charts of text: a bar, and a curve of one line."""

from __future__ import annotations

from collections.abc import Sequence

_LEVELS = "▁▂▃▄▅▆▇█"
_PARTS = " ▏▎▍▌▋▊▉█"


def bar(share: float, width: int) -> str:
    """A bar that is filled by ``share``, from 0 to 1."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    whole, part = divmod(eighths, 8)
    text = "█" * whole + (_PARTS[part] if part else "")
    return text.ljust(width, "░")


def band(start: int, stop: int, total: int, width: int) -> str:
    """Where ``[start, stop)`` lies in a whole of ``total``; what there is is seen, be it little."""
    width = min(width, total)
    first = start * width // max(total, 1)
    last = max(-(-stop * width // max(total, 1)), first + 1) if stop > start else first
    return "".join("█" if first <= i < last else "░" for i in range(width))


def curve(values: Sequence[float], width: int) -> str:
    """Values as a line of at most ``width`` columns, each as high as the value that it shows."""
    count = min(len(values), width)
    if count == 0:
        return ""
    picked = [values[i * (len(values) - 1) // max(count - 1, 1)] for i in range(count)]
    low, high = min(values), max(values)
    if high == low:
        return _LEVELS[3] * count
    top = len(_LEVELS) - 1
    return "".join(_LEVELS[round((value - low) / (high - low) * top)] for value in picked)
