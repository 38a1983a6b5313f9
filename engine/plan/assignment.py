"""Assigns each merge of a run to the CPU or to a device.

A merge is usually limited by storage, and a device helps only if the CPU does not keep up with it.
So devices are used if the CPU is expected to fall behind by more than the time to start them. Then
they get every merge that they can run, or else none:

    storage     ████████████                bytes read and written / rate
    CPU         ███████████████████████     cost of all kernels / cores
    CPU beside  ██                          cost of what devices cannot run / cores
    saved                   ███████████     more than starting a device takes?

The times are estimates (`engine.plan.estimate`). Every merge must fit where it is assigned: a
device works on a few grains at a time, and if it has no room for one, the CPU is used.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from mergeloom.engine.base.records import record
from mergeloom.engine.hardware.accelerators import Accelerator
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.plan.device_memory import grains_at_once
from mergeloom.engine.plan.estimate import STORAGE_RATE, Estimate
from mergeloom.engine.plan.work import Work, kinds_of


class Reason(enum.Enum):
    """Reason a merge is placed where it is."""

    COPIED = "nothing to compute"
    NO_DEVICE = "there is no other device"
    KEEPS_UP = "the CPU keeps up with storage"
    NOT_WORTH_STARTING = "starting a device would take longer than it saves"
    FALLS_BEHIND = "the CPU would not keep up with storage"
    TOO_LARGE = "one grain does not fit into the device's memory"
    NEEDS_FLOAT64 = "it needs float64, which the device lacks"
    CPU_ONLY = "it has tensors beside its inputs, or elements of less than a byte"
    NO_CODE = "devices have no code for its method or its types"
    NO_RAM = "the memory budget has no room for the device's libraries"
    ASKED_FOR = "asked for by --device"


@record(frozen=True, slots=True)
class Assignment:
    """Where a merge is computed: device index ``device``, or ``None`` for the CPU, and why."""

    device: int | None
    reason: Reason


def assign_devices(works: Sequence[Work], machine: Machine, threads: int) -> list[Assignment]:
    """The assignment of each of ``works``, which run in this order.

    If devices are forced, every work that can run on one does. The CPU has ``threads`` workers.
    """
    devices: Sequence[Accelerator] = machine.devices
    if not devices:
        no_device, copied = Assignment(None, Reason.NO_DEVICE), Assignment(None, Reason.COPIED)
        return [no_device if work.kind.merge_shape.computes else copied for work in works]
    estimates = {kind: Estimate.of(kind) for kind in kinds_of(works)}
    stored_bytes, cpu_only_seconds = 0, 0.0
    movable_seconds = [0.0] * len(devices)
    wanted = Reason.ASKED_FOR if machine.devices_forced else Reason.FALLS_BEHIND
    found = []
    for work in works:
        estimate = estimates[work.kind]
        stored_bytes += estimate.stored_bytes
        capable = _capable_devices(work, devices)
        if isinstance(capable, Reason):
            cpu_only_seconds += estimate.core_seconds
            found.append(Assignment(None, capable))
        else:
            number = min(capable, key=movable_seconds.__getitem__)
            movable_seconds[number] += estimate.core_seconds
            found.append(Assignment(number, wanted))
    used = {assignment.device for assignment in found} - {None}
    if machine.devices_forced or not used:
        return found
    start = max(devices[number].start_seconds for number in used if number is not None)
    all_seconds = cpu_only_seconds + sum(movable_seconds)
    reason = devices_reason(stored_bytes, all_seconds / threads, cpu_only_seconds / threads, start)
    return found if reason is wanted else without_devices(found, reason)


def devices_reason(stored_bytes: int, all_seconds: float, cpu_only: float, start: float) -> Reason:
    """Why devices are used, or are not; they are used if this is `Reason.FALLS_BEHIND`.

    A run reads and writes ``stored_bytes``. The CPU would compute for ``all_seconds`` without
    devices, and for ``cpu_only`` seconds what devices cannot run; starting them takes ``start``
    seconds.
    """
    saved = all_seconds - max(stored_bytes / STORAGE_RATE, cpu_only)
    if saved <= 0:
        return Reason.KEEPS_UP
    return Reason.NOT_WORTH_STARTING if saved <= start else Reason.FALLS_BEHIND


def without_devices(found: Sequence[Assignment], reason: Reason) -> list[Assignment]:
    """The same assignments with the CPU instead of devices."""
    return [
        assignment if assignment.device is None else Assignment(None, reason)
        for assignment in found
    ]


def _capable_devices(work: Work, devices: Sequence[Accelerator]) -> list[int] | Reason:
    """The indices of the devices that can run a work, or why there is none."""
    if not work.merge_shape.computes:
        return Reason.COPIED
    dtypes = [*(load.dtype for load in work.leaves), *(write.dtype for write in work.writes)]
    if work.side_loads or any(dtype.block > 1 for dtype in dtypes):
        return Reason.CPU_ONLY
    if not work.kind.has_device_code:
        return Reason.NO_CODE
    capable = [
        number
        for number, device in enumerate(devices)
        if device.has_float64 or not work.kind.uses_float64
    ]
    if not capable:
        return Reason.NEEDS_FLOAT64
    capable = [n for n in capable if grains_at_once(work.merge_shape, devices[n].memory_bytes, 1)]
    return capable or Reason.TOO_LARGE
