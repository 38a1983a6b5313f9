"""Opens devices. Only runs import this module."""

from __future__ import annotations

import contextlib
import threading

from mergeloom.engine.hardware.accelerators import Accelerator
from mergeloom.engine.run.device import Device


def open_device(accelerator: Accelerator) -> Device:
    """Open a device, for this thread.

    Raises:
        RuntimeError: it cannot be used.
    """
    if accelerator.kind == "cuda":
        from mergeloom.engine.run.cuda_device import CudaDevice

        return CudaDevice(accelerator)
    from mergeloom.engine.run.torch_device import MpsDevice

    return MpsDevice(accelerator)


def start_early(wanted: str) -> None:
    """Begin to open a CUDA device that is asked for by name (``cuda``: the first), in a thread.

    For a process that plans and then merges: opening takes a third of a second, planning more. The
    context is kept until the process ends. Errors are left to `open_device`.
    """
    kind, _, number = wanted.partition(":")
    if kind == "cuda" and (number or "0").isdigit():
        threading.Thread(target=_hold, args=(int(number or 0),), daemon=True).start()


def _hold(number: int) -> None:
    from mergeloom.engine.hardware.cuda import Context, CudaError

    with contextlib.suppress(CudaError):
        Context(number)
