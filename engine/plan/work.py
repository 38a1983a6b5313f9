"""The work of a graph: what each merge reads, in which passes, and what it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergeloom.engine.base.grains import Access, Grains, partition
from mergeloom.engine.graph.graph import Graph, Load, Merge, Write, copied_dtype, tree
from mergeloom.engine.graph.kernel import DECODING, Arithmetic, Kernel, Statistic, Use
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.memory.pages import PAGE, block_bytes
from mergeloom.engine.plan.footprint import MergeShape, Positions, WorkerMemory


@dataclass(frozen=True, slots=True)
class Pass:
    """One walk over the inputs of a merge tree.

    ``merge`` is the merge whose statistic number ``statistic`` is gathered; for the last pass it
    is the root and ``statistic`` is ``None``. ``leaves`` are the positions of the loads needed.
    """

    merge: Merge
    statistic: int | None
    leaves: Positions


@dataclass(frozen=True, slots=True)
class Work:
    """One root merge, all that is written of it, and all that it needs.

    ``leaves`` are its aligned loads, ``side`` those that are held whole while it runs.
    ``arithmetic`` computes it on the CPU, where it has to be computed, and is asked for ``words``.
    """

    root: Merge
    writes: tuple[Write, ...]
    leaves: tuple[Load, ...]
    side: tuple[Load, ...]
    passes: tuple[Pass, ...]
    profile: MergeShape
    arithmetic: Arithmetic
    words: frozenset[str]

    @property
    def grains(self) -> Grains:
        return self.profile.grains


def words_of(works: Sequence[Work]) -> dict[Arithmetic, frozenset[str]]:
    """The words that are used of each arithmetic on the CPU."""
    found: dict[Arithmetic, set[str]] = {}
    for work in works:
        if work.profile.computes:
            found.setdefault(work.arithmetic, set()).update(work.words)
    return {arithmetic: frozenset(own) for arithmetic, own in found.items()}


def works_of(graph: Graph, machine: Machine) -> list[Work]:
    writes: dict[Merge, list[Write]] = {}
    for write in graph.writes:
        writes.setdefault(write.merge, []).append(write)
    profiles: dict[MergeShape, MergeShape] = {}
    return [_work(root, tuple(own), profiles, machine) for root, own in writes.items()]


def _work(
    root: Merge, writes: tuple[Write, ...], profiles: dict[MergeShape, MergeShape], machine: Machine
) -> Work:
    merges = tuple(tree(root))
    leaves: dict[Load, int] = {}
    side = dict.fromkeys(load for merge in merges for load in merge.gather.side)
    needed: dict[Merge, Positions] = {}
    for merge in merges:  # inputs come before their users
        own: dict[int, None] = {}
        for node in merge.gather.inputs:
            if isinstance(node, Load):
                own[leaves.setdefault(node, len(leaves))] = None
            else:
                own.update(dict.fromkeys(needed[node]))
        needed[merge] = tuple(own)
    parts = {merge: _parts(merge.kernel) for merge in merges}
    passes = [
        Pass(merge, statistic, needed[merge])
        for merge in merges
        for statistic in range(len(parts[merge]) - 1)
    ]
    passes.append(Pass(root, None, needed[root]))
    copied = copied_dtype(root)
    computes = copied is None or any(write.dtype != copied for write in writes)
    access = max(merge.kernel.access for merge in merges) if computes else Access.ELEMENTWISE
    grains = partition(root.shape, access)
    arithmetic = _arithmetic(merges, writes, machine)
    profile = MergeShape(
        grains=grains,
        leaf_bits=tuple(load.dtype.bits for load in leaves),
        write_bits=tuple(write.dtype.bits for write in writes),
        passes=tuple(current.leaves for current in passes),
        computes=computes,
        worker=_working(parts, grains, arithmetic) if computes else WorkerMemory(0, 0),
        on_device=_working(parts, grains, machine.torch)
        if computes and machine.devices
        else WorkerMemory(0, 0),
        memo_bytes=root.kernel.memo_bytes(grains) if computes and not arithmetic.uses_torch else 0,
        side_bytes=tuple(load.nbytes for load in side),
    )
    profile = profiles.setdefault(profile, profile)
    words = frozenset(use.word for own in parts.values() for _, uses in own for use in uses)
    if any(map(_decodes, merges)):
        words |= {DECODING.word}
    return Work(root, writes, tuple(leaves), tuple(side), tuple(passes), profile, arithmetic, words)


def _decodes(merge: Merge) -> bool:
    """Whether any input of a merge lies in blocks that a library decodes."""
    nodes = (*merge.gather.inputs, *merge.gather.side)
    return any(isinstance(node, Load) and bool(node.dtype.codec) for node in nodes)


_Part = tuple[Kernel | Statistic[Any, Any], tuple[Use, ...]]
"""A kernel or one of its statistics, and what it uses."""


def _parts(kernel: Kernel) -> list[_Part]:
    """The kernel, and its statistics in order."""
    parts: list[Kernel | Statistic[Any, Any]] = [kernel, *kernel.passes]
    return [(part, part.uses) for part in parts]


def _arithmetic(merges: Sequence[Merge], writes: Sequence[Write], machine: Machine) -> Arithmetic:
    """What computes a merge tree on the CPU: the machine's own, if all kernels speak its words."""
    speak = all(
        merge.kernel.uses
        and all(
            machine.arithmetic.widens(node.dtype)
            for node in merge.gather.inputs
            if isinstance(node, Load)
        )
        for merge in merges
    )
    if speak and all(machine.arithmetic.writes(write.dtype) for write in writes):
        return machine.arithmetic
    return machine.torch


def _working(
    parts: Mapping[Merge, Sequence[_Part]], grains: Grains, arithmetic: Arithmetic
) -> WorkerMemory:
    """What one worker needs for its arithmetic on a merge tree."""
    arrays = workspace = accumulator = 0
    for merge, own in parts.items():
        arrays += max(part.scratch for part, _ in own) + 1
        arrays += sum(
            isinstance(node, Load) and not arithmetic.reads(node.dtype)
            for node in merge.gather.inputs
        )
        if _decodes(merge):
            workspace += arithmetic.workspace_bytes(DECODING, grains)
        workspace += max(
            part.workspace_bytes(grains)
            + sum(arithmetic.workspace_bytes(use, grains) for use in uses)
            for part, uses in own
        )
        for part, _ in own:
            if isinstance(part, Statistic):
                accumulator = max(accumulator, part.accumulator_bytes(grains))
    scratch = block_bytes(-(-grains.size * 4 // PAGE) * PAGE * arrays + workspace)
    return WorkerMemory(scratch, accumulator)
