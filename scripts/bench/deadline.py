"""A program's time limit, shared among its steps."""

from __future__ import annotations

import time


class OutOfTimeError(Exception):
    """A step exceeded its time limit."""


class Deadline:
    """A deadline ``seconds`` after its creation."""

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
        """Seconds that a step may take: ``most``, or what is left.

        Raises:
            OutOfTimeError: fewer than ``least`` are left, too few to begin the step.
        """
        if self.left <= least:
            raise OutOfTimeError(f"{self.left:.0f} s are left, {least:.0f} s are needed")
        return min(most, self.left)
