"""Assigns each merge of a run to the CPU or to a device.

Moving a merge to a device helps if the run is limited by the CPU. So the merges are simulated in
order with a clock for storage, one for the CPU and one for each device. A merge is assigned to the
CPU as long as the CPU keeps up with storage, otherwise to the processor that finishes it first. If
all devices together save less time than starting them takes, none is used.

    storage   ███▏███▏███▏███▏███▏          bytes read and written / rate
    CPU          ██████▏██████▏             cost of its kernels / cores
    device          ███▏███▏███▏            the larger of bytes moved / bus and arithmetic / speed

Rates are from `engine.hardware.rates` and only affect time. Every merge must fit where it is
assigned: a device works on a few grains at a time, and if it has no room for one, the CPU is used.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import field

from mergeloom.engine.base.records import dataclass, record
from mergeloom.engine.hardware.accelerators import Accelerator
from mergeloom.engine.hardware.rates import Rates
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.plan.device_memory import bus_bytes, grains_at_once
from mergeloom.engine.plan.footprint import MergeShape
from mergeloom.engine.plan.work import Work, WorkKind, kinds_of

_LAG = 0.25
"""Seconds that the CPU may fall behind storage before merges are moved to devices."""


class Reason(enum.Enum):
    """Reason a merge is placed where it is."""

    COPIED = "nothing to compute"
    NO_DEVICE = "there is no other device"
    KEEPS_UP = "the CPU keeps up with storage"
    FASTER_ON_CPU = "the CPU is done first"
    TOO_LARGE = "one grain does not fit into the device's memory"
    NEEDS_DOUBLE = "it needs float64, which the device lacks"
    NOT_WORTH_STARTING = "starting a device would take longer than it saves"
    CPU_ONLY = "it has tensors beside its inputs, or codes of less than a byte"
    NO_CODE = "devices have no code for its method or its types"
    NO_RAM = "the memory budget has no room for the device's libraries"
    FASTER_THERE = "the device is done first"
    ASKED_FOR = "asked for by --device"


@record(frozen=True, slots=True)
class Assignment:
    """Where a merge is computed: device index ``device``, or ``None`` for the CPU, and why."""

    device: int | None
    reason: Reason


@dataclass(frozen=True, slots=True)
class Estimate:
    """The resource needs of a merge, independent of rates.

    ``stored_bytes`` are read and written once. ``core`` is the cost of its kernels on devices, in
    seconds of one core, ``cpu_core`` the same for the CPU's arithmetic, ``compiled`` whether that
    is machine code. ``merge_shape`` is the shape of the merge.
    """

    stored_bytes: int
    core: float
    cpu_core: float
    compiled: bool
    merge_shape: MergeShape

    @staticmethod
    def of(kind: WorkKind) -> Estimate:
        """The estimate for one work of a kind."""
        merge_shape = kind.merge_shape
        stored = sum(map(merge_shape.leaf_bytes, merge_shape.all_leaves)) + sum(
            merge_shape.side_bytes
        )
        stored += sum(merge_shape.table_bytes)
        elements = merge_shape.grains.total / 1e9 if merge_shape.computes else 0.0
        core, cpu_core = (cost * elements for cost in kind.costs)
        compiled = not kind.arithmetic.uses_torch
        return Estimate(stored + kind.write_bytes, core, cpu_core, compiled, merge_shape)

    def on_storage(self, rates: Rates) -> float:
        """Seconds of storage."""
        return self.stored_bytes / rates.storage

    def on_core(self, rates: Rates) -> float:
        """Seconds of one core."""
        return self.cpu_core * rates.cpu(self.compiled)

    def on(self, device: Accelerator) -> float:
        """Seconds on ``device``, where copies and arithmetic overlap."""
        moved = bus_bytes(self.merge_shape, device.memory_bytes)
        return max(self.core / device.speed, moved / device.bus_rate)


@dataclass(slots=True)
class _Clocks:
    """Times in seconds at which storage, the CPU and each device finish their assigned work."""

    threads: int
    storage: float = 0.0
    cpu: float = 0.0
    devices: dict[int, float] = field(default_factory=dict)

    def with_cpu(self, seconds: float) -> float:
        return max(self.cpu, self.storage) + seconds / self.threads

    def with_device(self, device: int, seconds: float) -> float:
        return max(self.devices.get(device, 0.0), self.storage) + seconds

    @property
    def end(self) -> float:
        return max(self.storage, self.cpu, *self.devices.values(), 0.0)


def assign_devices(works: Sequence[Work], machine: Machine, threads: int) -> list[Assignment]:
    """The assignment of each of ``works``, which run in this order.

    If devices are forced, every work that can run on one does. The CPU has ``threads`` workers.
    """
    devices: Sequence[Accelerator] = machine.devices
    forced, rates = machine.forced, machine.rates
    if not devices:
        no_device, copied = Assignment(None, Reason.NO_DEVICE), Assignment(None, Reason.COPIED)
        return [no_device if work.kind.merge_shape.computes else copied for work in works]
    devices = [rates.of(device) for device in devices]
    clocks, alone = _Clocks(threads), _Clocks(threads)
    found = []
    estimates = {kind: Estimate.of(kind) for kind in kinds_of(works)}
    for work in works:
        estimate = estimates[work.kind]
        core = estimate.on_core(rates)
        for each in (clocks, alone):
            each.storage += estimate.on_storage(rates)
        alone.cpu = alone.with_cpu(core)
        assignment = _assign(work, estimate, core, devices, forced, clocks)
        if assignment.device is None:
            clocks.cpu = clocks.with_cpu(core)
        else:
            seconds = estimate.on(devices[assignment.device])
            clocks.devices[assignment.device] = clocks.with_device(assignment.device, seconds)
        found.append(assignment)
    if clocks.devices and not forced:
        start = max(devices[number].start_seconds for number in clocks.devices)
        if clocks.end + start >= alone.end:
            return without_devices(found, Reason.NOT_WORTH_STARTING)
    return found


def without_devices(found: Sequence[Assignment], reason: Reason) -> list[Assignment]:
    """The same assignments with the CPU instead of devices."""
    return [
        assignment if assignment.device is None else Assignment(None, reason)
        for assignment in found
    ]


def _assign(
    work: Work,
    estimate: Estimate,
    core: float,
    devices: Sequence[Accelerator],
    forced: bool,
    clocks: _Clocks,
) -> Assignment:
    if not work.merge_shape.computes:
        return Assignment(None, Reason.COPIED)
    dtypes = [*(load.dtype for load in work.leaves), *(write.dtype for write in work.writes)]
    if work.side_loads or any(dtype.block > 1 for dtype in dtypes):
        return Assignment(None, Reason.CPU_ONLY)
    if not work.kind.offered:
        return Assignment(None, Reason.NO_CODE)
    able = [
        number for number, device in enumerate(devices) if device.double or not work.kind.double
    ]
    if not able:
        return Assignment(None, Reason.NEEDS_DOUBLE)
    able = [n for n in able if grains_at_once(work.merge_shape, devices[n].memory_bytes, 1)]
    if not able:
        return Assignment(None, Reason.TOO_LARGE)
    ends = {n: clocks.with_device(n, estimate.on(devices[n])) for n in able}
    first = min(able, key=lambda number: ends[number])
    if forced:
        return Assignment(first, Reason.ASKED_FOR)
    on_cpu = clocks.with_cpu(core)
    if on_cpu <= clocks.storage + _LAG:
        return Assignment(None, Reason.KEEPS_UP)
    return (
        Assignment(first, Reason.FASTER_THERE)
        if ends[first] < on_cpu
        else Assignment(None, Reason.FASTER_ON_CPU)
    )


# --- memory on a device ---------------------------------------------------------------------
#
#     outside     allocations of the arithmetic itself: its arrays, statistics
#     scratch     arithmetic on one grain
#     slots       inputs and outputs of one chunk each
#     cache       inputs kept for all passes, in the remaining memory
