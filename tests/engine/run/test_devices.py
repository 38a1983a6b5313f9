"""Opening the context of a device before it is needed."""

from __future__ import annotations

from queue import SimpleQueue

import pytest

from mergeloom.engine.hardware import cuda
from mergeloom.engine.run.devices import start_early


def test_only_a_cuda_device_asked_for_by_name_is_opened_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: SimpleQueue[int] = SimpleQueue()

    def context(number: int) -> None:
        opened.put(number)
        raise cuda.CudaError("no such device")  # left to the one who opens it for use

    monkeypatch.setattr(cuda, "Context", context)
    for wanted, number in (("cuda", 0), ("cuda:3", 3)):
        start_early(wanted)
        assert opened.get(timeout=10) == number
    for wanted in ("auto", "cpu", "mps", "cuda:x"):
        start_early(wanted)
    assert opened.empty()
