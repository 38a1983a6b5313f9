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
    given, stored, beside = [0.0] * len(devices), 0, 0.0
    wanted = Reason.ASKED_FOR if machine.devices_forced else Reason.FALLS_BEHIND
    found = []
    for work in works:
        estimate = estimates[work.kind]
        stored += estimate.stored_bytes
        able = _able(work, devices)
        if isinstance(able, Reason):
            beside += estimate.core_seconds
            found.append(Assignment(None, able))
        else:
            number = min(able, key=given.__getitem__)
            given[number] += estimate.core_seconds
            found.append(Assignment(number, wanted))
    used = {assignment.device for assignment in found} - {None}
    if machine.devices_forced or not used:
        return found
    start = max(devices[number].start_seconds for number in used if number is not None)
    reason = judged(stored, (beside + sum(given)) / threads, beside / threads, start)
    return found if reason is wanted else without_devices(found, reason)


def judged(stored: int, on_cpu: float, beside: float, start: float) -> Reason:
    """Whether devices are used, or why not.

    A run reads and writes ``stored`` bytes. The CPU would compute for ``on_cpu`` seconds in all,
    and for ``beside`` seconds what devices cannot run; starting them takes ``start`` seconds.
    """
    saved = on_cpu - max(stored / STORAGE_RATE, beside)
    if saved <= 0:
        return Reason.KEEPS_UP
    return Reason.NOT_WORTH_STARTING if saved <= start else Reason.FALLS_BEHIND


def without_devices(found: Sequence[Assignment], reason: Reason) -> list[Assignment]:
    """The same assignments with the CPU instead of devices."""
    return [
        assignment if assignment.device is None else Assignment(None, reason)
        for assignment in found
    ]


def _able(work: Work, devices: Sequence[Accelerator]) -> list[int] | Reason:
    """The indices of the devices that can run a work, or why there is none."""
    if not work.merge_shape.computes:
        return Reason.COPIED
    dtypes = [*(load.dtype for load in work.leaves), *(write.dtype for write in work.writes)]
    if work.side_loads or any(dtype.block > 1 for dtype in dtypes):
        return Reason.CPU_ONLY
    if not work.kind.has_device_code:
        return Reason.NO_CODE
    able = [
        number
        for number, device in enumerate(devices)
        if device.has_float64 or not work.kind.uses_float64
    ]
    if not able:
        return Reason.NEEDS_FLOAT64
    able = [n for n in able if grains_at_once(work.merge_shape, devices[n].memory_bytes, 1)]
    return able or Reason.TOO_LARGE
