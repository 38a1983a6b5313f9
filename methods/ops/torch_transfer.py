"""Sending small tensors to where a grain lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def beside(numbers: Tensor, grain: Tensor) -> Tensor:
    """``numbers``, of main memory, on the device of ``grain``.

    On CUDA nobody waits: pageable memory is taken over before the call returns. Otherwise each
    call would wait for all that the device has been told to do before. Metal reads the memory
    later, when it may be gone; there one has to wait.
    """
    return numbers.to(grain.device, non_blocking=grain.device.type != "mps")
