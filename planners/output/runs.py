"""Groups copied tensors into shards, so that file systems that share extents can clone them.

Such a file system shares whole blocks whose offsets agree modulo the block size. Tensors of a shard
are contiguous, and the header can be padded, so that the first tensor of a shard is aligned as in
its source; tensors that follow it in the source are then aligned too.

    source  ▐header▐ a ▐ b ▐ c ▐ d ▐ e ▐        a shard  ▐header··▐ b ▐ c ▐ d ▐
                        └────run────┘                              └────run────┘
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import field

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import Load, Merge
from mergeloom.engine.graph.pieces import Range
from mergeloom.planners.models.model import OutputTensor

ALIGNMENT = 4096
"""Block size in bytes. The data of a file starts at a multiple of it, for direct writes, or at an
offset that allows cloning."""

MAX_ELEMENT_BYTES = 8
"""Bytes of the widest element. Tensors start at multiples of their element size."""

_MIN_SHARD_BYTES = 256 << 20
"""Minimum bytes for a separate shard; fewer are copied in less than half a second."""


@dataclass(slots=True)
class Shard:
    """Indices of the tensors of one shard, in order, and their total bytes.

    ``phase`` is the start of the data modulo `ALIGNMENT`.
    """

    phase: int
    numbers: list[int] = field(default_factory=list)
    nbytes: int = 0

    def add(self, numbers: Sequence[int], nbytes: int) -> None:
        self.numbers += numbers
        self.nbytes += nbytes


@dataclass(frozen=True, slots=True)
class _Run:
    """Indices of tensors that are contiguous in a source, from byte ``offset`` on."""

    numbers: Sequence[int]
    offset: int
    nbytes: int


def shards_of_runs(
    tensors: Sequence[OutputTensor], origins: Sequence[Range | None], most: int
) -> list[Shard]:
    """Shards of at most ``most`` bytes that consist of runs only; other tensors are not included.
    ``origins`` has the `source_range` of each tensor.

    A run is added to an existing shard if it is aligned with it. So the number of extra shards is
    at most the number of files, or of different alignments.
    """
    shards: list[Shard] = []
    for run in _runs(tensors, origins, most):
        for shard in shards:
            agrees = (shard.phase + shard.nbytes - run.offset) % ALIGNMENT == 0
            if agrees and shard.nbytes + run.nbytes <= most:
                break
        else:
            shard = Shard(run.offset % ALIGNMENT)
            shards.append(shard)
        shard.add(run.numbers, run.nbytes)
    least = max(min(_MIN_SHARD_BYTES, most // 8), 2 * ALIGNMENT)
    return [shard for shard in shards if shard.nbytes >= least]


def _runs(
    tensors: Sequence[OutputTensor], origins: Sequence[Range | None], most: int
) -> Iterator[_Run]:
    """All runs, in the order in which the output first needs their sources."""
    sources: dict[Hashable, list[tuple[int, int]]] = {}
    times: Counter[Hashable] = Counter()
    for number, origin in enumerate(origins):
        if origin is not None and origin.offset % tensors[number].dtype.size == 0:
            place = id(origin.source), origin.offset
            key = id(origin.source), times[place]  # a tensor copied twice is in two runs
            sources.setdefault(key, []).append((origin.offset, number))
            times[place] += 1
    for places in sources.values():
        run: list[int] = []
        begin = end = 0
        for offset, number in sorted(places):
            if run and offset != end:
                yield from _split_run(run, begin, tensors, most)
                run = []
            begin = begin if run else offset
            run.append(number)
            end = offset + tensors[number].nbytes
        yield from _split_run(run, begin, tensors, most)


def _split_run(
    run: Sequence[int], offset: int, tensors: Sequence[OutputTensor], most: int
) -> Iterator[_Run]:
    """Split a run into parts of similar size, at most ``most`` bytes unless a single tensor.

    Parts begin at multiples of the widest element; tensors that cannot are left out.
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
        if part or offset % MAX_ELEMENT_BYTES == 0:
            part.append(number)
            nbytes += own
        else:
            offset += own
    if part:
        yield _Run(part, offset, nbytes)


def source_range(tensor: OutputTensor) -> Range | None:
    """The contiguous source bytes of a copied tensor; ``None`` for others."""
    if not tensor.is_copied:
        return None
    found = _first_load(tensor.merge).bytes
    return found if isinstance(found, Range) and found.length else None


def _first_load(merge: Merge) -> Load:
    """The load at the start of a chain of copies."""
    node = merge.gather.inputs[0]
    return node if isinstance(node, Load) else _first_load(node)
