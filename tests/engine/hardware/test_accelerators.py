"""Looking for devices: NVIDIA's management library, played by Python, and what is wanted."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from mergeloom.engine.base.errors import DeviceError
from mergeloom.engine.hardware import accelerators
from mergeloom.engine.hardware.accelerators import (
    Accelerator,
    choose,
    found_devices,
    nvidia_devices,
)

GIB = 1 << 30
FAILED = 6


@dataclass
class Card:
    uuid: str
    free: int
    name: bytes = b"NVIDIA H100 80GB HBM3"


@dataclass
class Nvml:
    """The library with these cards; a handle is a card's number and one."""

    cards: list[Card]
    open: int = 0
    calls: list[str] = field(default_factory=list)

    def nvmlInit_v2(self) -> int:
        self.open += 1
        return 0

    def nvmlShutdown(self) -> int:
        self.open -= 1
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.cards)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, handle: Any) -> int:
        if index.value >= len(self.cards):
            return FAILED
        handle._obj.value = index.value + 1
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:
        for number, card in enumerate(self.cards):
            if card.uuid.encode() == uuid:
                handle._obj.value = number + 1
                return 0
        return FAILED

    def nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, memory: Any) -> int:
        card = self._card(handle)
        memory._obj[:] = [80 * GIB, card.free, 80 * GIB - card.free]
        return 0

    def nvmlDeviceGetName(self, handle: Any, name: Any, length: ctypes.c_uint) -> int:
        assert length.value == 96
        name.value = self._card(handle).name
        return 0

    def _card(self, handle: ctypes.c_void_p) -> Card:
        assert handle.value
        return self.cards[handle.value - 1]


CARDS = [Card("GPU-a", 10 * GIB), Card("GPU-b", 20 * GIB), Card("GPU-c", 30)]


@pytest.mark.parametrize(
    ("setting", "free"),
    [
        (None, [10 * GIB, 20 * GIB, 30]),
        ("2,0", [30, 10 * GIB]),
        ("GPU-b", [20 * GIB]),
        ("1,-1,0", [20 * GIB]),
        ("1,7,0", [20 * GIB]),
        ("", []),
    ],
)
def test_devices_are_numbered_as_cuda_numbers_them(setting: str | None, free: list[int]) -> None:
    library = Nvml(CARDS)
    environment = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
    found = list(nvidia_devices(library, environment))
    assert [device.memory_bytes for device in found] == free
    assert [device.name for device in found] == [f"cuda:{n}" for n in range(len(free))]
    assert library.open == 0


def test_a_device_has_name_and_kind() -> None:
    first = next(nvidia_devices(Nvml(CARDS), {}))
    assert first.title == "NVIDIA H100 80GB HBM3"
    assert first.kind == "cuda"


def test_without_driver_library_or_compiler_no_device_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert list(nvidia_devices(None, {})) == []
    if sys.platform == "linux":
        monkeypatch.setattr(accelerators, "_load_nvml", lambda: Nvml(CARDS))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert len(found_devices(lambda: True)) == 3
        assert found_devices(lambda: False) == ()


CUDA = tuple(Accelerator(f"cuda:{n}", "card", 100 * (n + 1)) for n in range(2))


@pytest.mark.parametrize(
    ("wanted", "vram", "expected"),
    [
        ("cpu", None, []),
        ("auto", None, [("cuda:0", 80), ("cuda:1", 160)]),
        ("cuda", 50, [("cuda:0", 50), ("cuda:1", 50)]),
        ("cuda:1", None, [("cuda:1", 160)]),
    ],
)
def test_the_wanted_devices_are_chosen(
    wanted: str, vram: int | None, expected: list[tuple[str, int]]
) -> None:
    chosen = choose(wanted, vram, lambda: CUDA)
    assert [(device.name, device.memory_bytes) for device in chosen] == expected


@pytest.mark.parametrize("wanted", ["gpu", "cuda:", "cuda:x", "cpu:0", "auto:1", "mps:0", ""])
def test_an_unknown_device_name_is_refused_without_looking_for_devices(wanted: str) -> None:
    with pytest.raises(DeviceError, match="is unknown: choose auto, cpu, cuda"):
        choose(wanted, None, lambda: pytest.fail("looked"))


def test_an_absent_device_is_refused_and_the_present_ones_are_named() -> None:
    with pytest.raises(DeviceError, match=r"'cuda:7' is not available.*devices: cuda:0, cuda:1"):
        choose("cuda:7", None, lambda: CUDA)
    with pytest.raises(DeviceError, match=r"'mps' is not available.*devices: none"):
        choose("mps", None, lambda: ())
    assert choose("auto", None, lambda: ()) == ()


def test_finding_devices_does_not_import_torch() -> None:
    code = (
        "import sys, mergeloom.engine.hardware.process as m; m.devices(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
