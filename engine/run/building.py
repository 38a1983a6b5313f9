"""Compiles the machine code that a schedule needs before it runs."""

from __future__ import annotations

from collections.abc import Callable

from mergeloom.engine.plan.schedule import Schedule


def build_missing(plan: Schedule, building: Callable[[frozenset[str]], None] | None) -> None:
    """Compile missing machine code; ``building`` is called first, with its operations."""
    if plan.missing and building is not None:
        building(plan.missing)
    for arithmetic, operations in plan.operations.items():
        missing = arithmetic.missing(operations)
        if missing:
            arithmetic.build(missing)
