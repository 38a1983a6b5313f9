"""Small charts of text: bars, and line charts of one line of text."""

from __future__ import annotations

from collections.abc import Sequence

_LINE_LEVELS = "▁▂▃▄▅▆▇█"
_BAR_EIGHTHS = " ▏▎▍▌▋▊▉█"


def bar(share: float, width: int) -> str:
    """A bar filled to ``share``, from 0 to 1."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    whole, part = divmod(eighths, 8)
    text = "█" * whole + (_BAR_EIGHTHS[part] if part else "")
    return text.ljust(width, "░")


def range_bar(start: int, stop: int, total: int, width: int) -> str:
    """The position of ``[start, stop)`` in ``total``; a non-empty range is always visible."""
    width = min(width, total)
    first = start * width // max(total, 1)
    last = max(-(-stop * width // max(total, 1)), first + 1) if stop > start else first
    return "".join("█" if first <= i < last else "░" for i in range(width))


def line_chart(values: Sequence[float], width: int) -> str:
    """Values as a line chart of at most ``width`` columns."""
    count = min(len(values), width)
    if count == 0:
        return ""
    picked = [values[i * (len(values) - 1) // max(count - 1, 1)] for i in range(count)]
    low, high = min(values), max(values)
    if high == low:
        return _LINE_LEVELS[3] * count
    top = len(_LINE_LEVELS) - 1
    return "".join(_LINE_LEVELS[round((value - low) / (high - low) * top)] for value in picked)
