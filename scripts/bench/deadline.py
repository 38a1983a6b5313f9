"""Time that a program has, and what of it a step may take."""

from __future__ import annotations

import time


class OutOfTimeError(Exception):
    """A step did not end in the time that it had."""


class Deadline:
    """``seconds`` from now on, of which `left` are still to come."""

    def __init__(self, seconds: float) -> None:
        self._began = time.monotonic()
        self._seconds = seconds

    @property
    def passed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Seconds that are left, 0 at the end."""
        return max(self._seconds - self.passed, 0.0)

    def within(self, most: float, least: float = 0.0) -> float:
        """Seconds for a step that may take ``most``.

        Raises:
            OutOfTimeError: fewer than ``least`` are left, so that it had better not begin.
        """
        if self.left <= least:
            raise OutOfTimeError(f"{self.left:.0f} s are left, {least:.0f} s are needed")
        return min(most, self.left)
