"""The time limit of a program, and the share that a step may use."""

from __future__ import annotations

import time


class OutOfTimeError(Exception):
    """A step exceeded its time limit."""


class Deadline:
    """``seconds`` from now on, of which `left` are still to come."""

    def __init__(self, seconds: float) -> None:
        self._began = time.monotonic()
        self._seconds = seconds

    @property
    def passed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Remaining seconds, at least 0."""
        return max(self._seconds - self.passed, 0.0)

    def within(self, most: float, least: float = 0.0) -> float:
        """Seconds for a step that may take ``most``.

        Raises:
            OutOfTimeError: fewer than ``least`` are left, so that it had better not begin.
        """
        if self.left <= least:
            raise OutOfTimeError(f"{self.left:.0f} s are left, {least:.0f} s are needed")
        return min(most, self.left)
