"""Devices used through torch. Only workers import this."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from mergeloom.engine.hardware.accelerators import Accelerator
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.run.device import Device, Queue
from mergeloom.engine.run.torch_arrays import use_one_thread


class TorchQueue(Queue):
    """The order in which torch operations are called."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)


class TorchDevice(Device):
    """A device used through torch; memory is a flat uint8 tensor.

    Raises:
        RuntimeError: torch cannot use it.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.name = accelerator.name
        self._device = torch.device(accelerator.name)
        torch.empty(1, device=self._device)

    def thread_context(self) -> AbstractContextManager[Any]:
        use_one_thread()
        return torch.inference_mode()

    def allocate(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def main_memory(self, block: Block, offset: int, nbytes: int) -> Tensor:
        return torch.frombuffer(block.memory, dtype=torch.uint8, count=nbytes, offset=offset)

    def numbers(self, found: Sequence[Any]) -> list[float]:
        tensors = [number for number in found if isinstance(number, Tensor)]
        fetched = iter(torch.stack(tensors).tolist() if tensors else [])
        return [next(fetched) if isinstance(number, Tensor) else number for number in found]

    def queue(self) -> Queue:
        return TorchQueue()


class MpsDevice(TorchDevice):
    """An Apple GPU; it shares memory with the CPU and runs everything in order.

    Tensors never exceed its memory budget. torch cannot report its previous limit, so it is not
    restored.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        if not torch.backends.mps.is_available():
            raise RuntimeError("torch cannot use Metal here")
        super().__init__(accelerator)
        share = accelerator.memory_bytes / max(torch.mps.recommended_max_memory(), 1)
        torch.mps.set_per_process_memory_fraction(min(share, 1.0))

    def synchronize(self) -> None:
        torch.mps.synchronize()

    def reclaim(self) -> None:
        torch.mps.empty_cache()
