"""Which copied tensors stay together, so that where extents are shared they are clones.

A file system shares whole blocks, at offsets that agree modulo the block. Tensors of a shard
follow each other without a gap, and a header is as long as one likes: so the first tensor of a
shard can be made to agree with its source, and those that follow it there agree by themselves.

    source  ▐header▐ a ▐ b ▐ c ▐ d ▐ e ▐        a shard  ▐header··▐ b ▐ c ▐ d ▐
                        └────run────┘                              └────run────┘
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import field

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import Load, Merge, copied_dtype
from mergeloom.engine.graph.pieces import Range
from mergeloom.planners.models.model import OutputTensor

ALIGNMENT = 4096
"""Bytes of a block. Data starts at a multiple, so that most of it can be written directly, or where
clones of what is copied can be made."""

WIDEST = 8
"""Bytes of the widest element: tensors start at multiples of their elements."""

_WORTH = 256 << 20
"""Bytes that are copied in less than half a second; a shard of its own is worth more."""


@dataclass(slots=True)
class Shard:
    """Numbers of the tensors of one shard, in order, and how many bytes they have.

    ``phase`` is where the data begins, modulo `ALIGNMENT`.
    """

    phase: int
    numbers: list[int] = field(default_factory=list)
    nbytes: int = 0

    def add(self, numbers: Sequence[int], nbytes: int) -> None:
        self.numbers += numbers
        self.nbytes += nbytes


@dataclass(frozen=True, slots=True)
class _Run:
    """Numbers of tensors that lie beside each other in a source, from byte ``offset`` on."""

    numbers: Sequence[int]
    offset: int
    nbytes: int


def shards_of_runs(tensors: Sequence[OutputTensor], most: int) -> list[Shard]:
    """Shards of at most ``most`` bytes, made of runs alone. What is in none is left to others.

    Runs that agree with what is in a shard already are put there. So there are not many more of
    them than the data needs: as many more as there are files, or places modulo the block.
    """
    shards: list[Shard] = []
    for run in _runs(tensors, most):
        for shard in shards:
            agrees = (shard.phase + shard.nbytes - run.offset) % ALIGNMENT == 0
            if agrees and shard.nbytes + run.nbytes <= most:
                break
        else:
            shard = Shard(run.offset % ALIGNMENT)
            shards.append(shard)
        shard.add(run.numbers, run.nbytes)
    least = max(min(_WORTH, most // 8), 2 * ALIGNMENT)
    return [shard for shard in shards if shard.nbytes >= least]


def _runs(tensors: Sequence[OutputTensor], most: int) -> Iterator[_Run]:
    """All runs, in the order in which the output first needs their sources."""
    sources: dict[Hashable, list[tuple[int, int]]] = {}
    times: Counter[Hashable] = Counter()
    for number, tensor in enumerate(tensors):
        origin = origin_of(tensor)
        if origin is not None and origin.offset % tensor.dtype.size == 0:
            place = id(origin.source), origin.offset
            key = id(origin.source), times[place]  # what is copied twice is in two runs
            sources.setdefault(key, []).append((origin.offset, number))
            times[place] += 1
    for places in sources.values():
        run: list[int] = []
        begin = end = 0
        for offset, number in sorted(places):
            if run and offset != end:
                yield from _parts(run, begin, tensors, most)
                run = []
            begin = begin if run else offset
            run.append(number)
            end = offset + tensors[number].nbytes
        yield from _parts(run, begin, tensors, most)


def _parts(
    run: Sequence[int], offset: int, tensors: Sequence[OutputTensor], most: int
) -> Iterator[_Run]:
    """A run in parts of about the same size, none larger than ``most`` if it is not one tensor.

    A part begins at a multiple of the widest element; what does not is in none.
    """
    whole = sum(tensors[number].nbytes for number in run)
    enough = -(-whole // -(-whole // most))
    part: list[int] = []
    nbytes = 0
    for number in run:
        own = tensors[number].nbytes
        if part and (nbytes >= enough or nbytes + own > most):
            yield _Run(part, offset, nbytes)
            part, offset, nbytes = [], offset + nbytes, 0
        if part or offset % WIDEST == 0:
            part.append(number)
            nbytes += own
        else:
            offset += own
    if part:
        yield _Run(part, offset, nbytes)


def origin_of(tensor: OutputTensor) -> Range | None:
    """The bytes that a tensor is a copy of, if it is one of a contiguous run of bytes."""
    if copied_dtype(tensor.merge) != tensor.dtype:
        return None
    found = _first(tensor.merge).bytes
    return found if isinstance(found, Range) and found.length else None


def _first(merge: Merge) -> Load:
    """The load that a copy, or a copy of copies, begins with."""
    node = merge.gather.inputs[0]
    return node if isinstance(node, Load) else _first(node)
