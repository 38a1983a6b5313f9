"""Opens devices. Only workers import this module."""

from __future__ import annotations

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
