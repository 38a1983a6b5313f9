"""Description of the machine for the scheduler."""

from __future__ import annotations

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.arithmetic import Arithmetic
from mergeloom.engine.hardware.accelerators import Accelerator


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine and the process, as described to the scheduler.

    ``process_bytes`` is the memory of the process before the run (interpreter, libraries, graph);
    ``runtime_bytes`` is added by importing and using torch; ``threads`` is the maximum number of
    workers. The CPU computes with ``arithmetic``, or with ``torch`` if that cannot, as devices do.
    Compilers take ``compiler_bytes`` before the run. If ``devices_forced``, ``devices`` get every
    merge they can run.
    """

    threads: int
    process_bytes: int
    runtime_bytes: int
    arithmetic: Arithmetic
    torch: Arithmetic
    compiler_bytes: int = 320 * MIB
    devices: tuple[Accelerator, ...] = ()
    devices_forced: bool = False

    @property
    def device_arithmetic(self) -> Arithmetic:
        """The arithmetic of devices."""
        return self.torch.on_device(self.devices[0].kind) if self.devices else self.torch
