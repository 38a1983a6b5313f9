"""Memory use of NVIDIA devices during a run, as counted by the driver."""

from __future__ import annotations

import threading
from types import TracebackType

from mergeloom.engine.hardware.accelerators import found_devices

_EVERY_SECONDS = 0.05


class DeviceMemory:
    """Looks, inside of its context, how much of a device's memory is used beyond what was before.

    Contexts, libraries and other processes count too. ``peak_bytes`` is the most on any one
    device; ``None`` where there is none.
    """

    def __init__(self) -> None:
        self.peak_bytes: int | None = None
        self._before = _free()
        self._ended = threading.Event()
        self._looking = threading.Thread(target=self._look)

    def __enter__(self) -> DeviceMemory:
        if self._before:
            self._looking.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._before:
            self._looking.join()

    def _look(self) -> None:
        while not self._ended.wait(_EVERY_SECONDS):
            used = max(a - b for a, b in zip(self._before, _free(), strict=True))
            self.peak_bytes = max(self.peak_bytes or 0, used)


def _free() -> list[int]:
    return [device.memory_bytes for device in found_devices(lambda: True)]
