"""What the machine has, as far as a schedule depends on it."""

from __future__ import annotations

from dataclasses import dataclass

from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.kernel import Arithmetic
from mergeloom.engine.hardware.accelerators import Accelerator
from mergeloom.engine.hardware.rates import ASSUMED, Rates


@dataclass(frozen=True, slots=True)
class Machine:
    """What a schedule must know of the machine and the process.

    ``process_bytes`` is what the process occupies before the run (interpreter, libraries, the
    graph); ``runtime_bytes`` what importing and using torch adds; ``threads`` how many workers may
    compute at once. The CPU computes by ``arithmetic``, and what that cannot do by ``torch``, as
    devices do. Compilers take ``compiler_bytes`` before the run. ``devices`` may compute too; with
    ``forced`` they get all that they can. ``rates`` are what is known of its speed.
    """

    threads: int
    process_bytes: int
    runtime_bytes: int
    arithmetic: Arithmetic
    torch: Arithmetic
    compiler_bytes: int = 320 * MIB
    devices: tuple[Accelerator, ...] = ()
    forced: bool = False
    rates: Rates = ASSUMED

    @property
    def there(self) -> Arithmetic:
        """What devices compute by."""
        return self.torch.on_device(self.devices[0].kind) if self.devices else self.torch
