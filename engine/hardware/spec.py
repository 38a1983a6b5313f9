"""What the machine has, as far as a schedule depends on it."""

from __future__ import annotations

from dataclasses import dataclass

from mergeloom.engine.hardware.accelerators import Accelerator
from mergeloom.engine.hardware.rates import ASSUMED, Rates


@dataclass(frozen=True, slots=True)
class LoopSupport:
    """What a schedule must know of compiled loops on a machine.

    ``built`` are the names of those that are there. Loading any takes ``loaded_bytes``; to build
    more a compiler needs ``compiler_bytes`` before the run (``None``: there is none).
    """

    built: frozenset[str]
    loaded_bytes: int
    compiler_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """What a schedule must know of the machine and the process.

    ``process_bytes`` is what the process occupies before the run (interpreter, libraries, the
    graph); ``runtime_bytes`` what importing and using the arithmetic library adds; ``threads`` how
    many workers may compute at once. ``loops`` is about compiled loops, where it has any.
    ``devices`` may compute too; with ``forced`` they get all that they can. ``rates`` are what is
    known of its speed.
    """

    threads: int
    process_bytes: int
    runtime_bytes: int
    loops: LoopSupport | None = None
    devices: tuple[Accelerator, ...] = ()
    forced: bool = False
    rates: Rates = ASSUMED
