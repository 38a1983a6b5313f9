"""The work of a graph: what each merge reads, in which passes, and what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mergeloom.engine.base.grains import Access, Grains, partition
from mergeloom.engine.graph.graph import Graph, Load, Merge, Write, copied_dtype, tree
from mergeloom.engine.graph.kernel import AS_STORED, Kernel, Statistic
from mergeloom.engine.memory.pages import PAGE, block_bytes
from mergeloom.engine.plan.footprint import Positions, Profile, Working


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
    """

    root: Merge
    writes: tuple[Write, ...]
    leaves: tuple[Load, ...]
    side: tuple[Load, ...]
    passes: tuple[Pass, ...]
    profile: Profile

    @property
    def grains(self) -> Grains:
        return self.profile.grains


def loop_names(works: Sequence[Work]) -> frozenset[str]:
    """The loops that kernels can use."""
    kernels = {merge.kernel for work in works for merge in tree(work.root)}
    return frozenset[str]().union(*(kernel.loops for kernel in kernels))


def works_of(graph: Graph) -> list[Work]:
    writes: dict[Merge, list[Write]] = {}
    for write in graph.writes:
        writes.setdefault(write.merge, []).append(write)
    profiles: dict[Profile, Profile] = {}
    return [_work(root, tuple(own), profiles) for root, own in writes.items()]


def _work(root: Merge, writes: tuple[Write, ...], profiles: dict[Profile, Profile]) -> Work:
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
    passes = [
        Pass(merge, statistic, needed[merge])
        for merge in merges
        for statistic in range(len(merge.kernel.passes))
    ]
    passes.append(Pass(root, None, needed[root]))
    copied = copied_dtype(root)
    computes = copied is None or any(write.dtype != copied for write in writes)
    access = max(merge.kernel.access for merge in merges) if computes else Access.ELEMENTWISE
    grains = partition(root.shape, access)
    profile = Profile(
        grains=grains,
        leaf_bits=tuple(load.dtype.bits for load in leaves),
        write_bits=tuple(write.dtype.bits for write in writes),
        passes=tuple(current.leaves for current in passes),
        computes=computes,
        worker=_working(merges, grains, False) if computes else Working(0, 0),
        looped=_working(merges, grains, True) if computes else Working(0, 0),
        notes_bytes=root.kernel.notes_bytes(grains) if computes else 0,
        side_bytes=tuple(load.nbytes for load in side),
    )
    profile = profiles.setdefault(profile, profile)
    return Work(root, writes, tuple(leaves), tuple(side), tuple(passes), profile)


def _working(merges: Sequence[Merge], grains: Grains, looped: bool) -> Working:
    """What one worker needs for its arithmetic on a merge tree."""
    tensors = workspace = accumulator = 0
    for merge in merges:
        kernel, nodes = merge.kernel, merge.gather.inputs
        loops_work = looped and bool(kernel.loops)
        parts: tuple[Kernel | Statistic[Any, Any], ...] = (kernel, *kernel.passes)
        own = [_tensors(part.scratch, part.looped_scratch, nodes, loops_work) for part in parts]
        tensors += max(own) + 1
        workspace += max(part.workspace_bytes(grains, loops_work) for part in parts)
        for statistic in kernel.passes:
            accumulator = max(accumulator, statistic.accumulator_bytes(grains, loops_work))
    scratch = block_bytes(-(-grains.size * 4 // PAGE) * PAGE * tensors) + workspace
    return Working(scratch, accumulator)


def _tensors(
    scratch: int, looped: int | None, nodes: Sequence[Load | Merge], loops_work: bool
) -> int:
    """Tensors of a grain's size that a kernel or a statistic needs: inputs, and its scratch."""
    if looped is None or not loops_work:
        return len(nodes) + scratch
    return looped + sum(not isinstance(node, Load) or node.dtype not in AS_STORED for node in nodes)
