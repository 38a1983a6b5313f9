"""Memory and reads of a merge, computed from its shape.

Checkpoints have few kinds of tensors, and many of each kind. So everything that depends on the kind
is in a `MergeShape`, everything that depends on scheduling in a `TileFlow`, and merges of one kind
share them.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import cached_property

from mergeloom.engine.base.grains import Grains
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.base.units import MIB
from mergeloom.engine.memory.pages import block_bytes, span_bytes

REQUEST_BYTES = 8 * MIB
"""Bytes of a read request of a tile, large enough for the full speed of a disk."""

TILES_IN_FLIGHT = 8
"""Number of tiles in flight that keeps readers, workers and writers busy."""

_WORKER_BYTES = 4 * MIB
"""Memory of a computing thread itself, in bytes."""

Positions = tuple[int, ...]
"""Positions of leaves in a merge."""


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """Memory of one worker: ``scratch_bytes`` for the arithmetic on one grain, and at most
    ``accumulator_bytes`` for one accumulator of a statistic."""

    scratch_bytes: int
    accumulator_bytes: int

    def of_workers(self, count: int) -> int:
        """Bytes for ``count`` workers, plus the combined accumulator and one in transit."""
        own = _WORKER_BYTES + self.scratch_bytes + self.accumulator_bytes
        return count * own + 2 * self.accumulator_bytes

    @property
    def device_thread_bytes(self) -> int:
        """Bytes for the thread of a device, which has its own scratch memory."""
        return _WORKER_BYTES + 2 * self.accumulator_bytes

    @staticmethod
    def maximum(needs: Iterable[WorkerMemory]) -> WorkerMemory:
        """The maximum of each field."""
        scratch = accumulator = 0
        for each in needs:
            scratch = max(scratch, each.scratch_bytes)
            accumulator = max(accumulator, each.accumulator_bytes)
        return WorkerMemory(scratch, accumulator)


@dataclass(frozen=True)
class MergeShape:
    """The sizes of a kind of root merge, from which its memory and reads follow.

    ``leaf_bits`` and ``write_bits`` are the bits of one element of each leaf and output. ``passes``
    has the positions of the leaves that each pass needs; the last pass writes. ``worker`` is the
    memory of one worker for the arithmetic, ``on_device`` that of a device. ``memo_bytes`` are the
    bytes of the memo of one grain (`Kernel.memo_bytes`), ``side_bytes`` those of each side input,
    ``table_bytes`` those of each table; ``table_reads`` says how many times each table is read if
    it is not in memory.
    """

    grains: Grains
    leaf_bits: tuple[int | Fraction, ...]
    write_bits: tuple[int | Fraction, ...]
    passes: tuple[Positions, ...]
    computes: bool
    worker: WorkerMemory
    on_device: WorkerMemory
    memo_bytes: int = 0
    side_bytes: tuple[int, ...] = ()
    table_bytes: tuple[int, ...] = ()
    table_reads: tuple[int, ...] = ()

    @property
    def leaf_sizes(self) -> tuple[int, ...]:
        """Bytes of one element of each leaf, rounded up."""
        return tuple(-(-bits // 8) for bits in self.leaf_bits)

    @property
    def write_sizes(self) -> tuple[int, ...]:
        """The same for outputs."""
        return tuple(-(-bits // 8) for bits in self.write_bits)

    @cached_property
    def side_input_bytes(self) -> int:
        """Ledger bytes of all side inputs."""
        return sum(_block(nbytes) for nbytes in self.side_bytes)

    def input_bytes(self, tile: int, positions: Positions) -> int:
        """Ledger bytes of the blocks of these leaves, for a tile of ``tile`` grains."""
        elements = min(tile * self.grains.size, self.grains.total)
        return sum(_block(_nbytes(elements, self.leaf_bits[i])) for i in positions)

    def output_bytes(self, tile: int) -> int:
        """Ledger bytes of the output blocks of one tile."""
        elements = min(tile * self.grains.size, self.grains.total)
        return sum(_block(_nbytes(elements, bits)) for bits in self.write_bits)

    def tile_memo_bytes(self, tile: int) -> int:
        """Ledger bytes of the memos of one tile of ``tile`` grains."""
        grains = min(tile, self.grains.count)
        return block_bytes(grains * self.memo_bytes) if self.memo_bytes else 0

    def tile_bytes(self, tile: int, positions: Positions) -> int:
        """Ledger bytes of one tile of the last pass that reads these leaves."""
        return self.input_bytes(tile, positions) + self.output_bytes(tile)

    def whole_bytes(self, positions: Positions) -> int:
        """Ledger bytes of these leaves in one block each."""
        return sum(_block(self.leaf_bytes(i)) for i in positions)

    def leaf_bytes(self, position: int) -> int:
        """Bytes of one leaf."""
        return _nbytes(self.grains.total, self.leaf_bits[position])

    @cached_property
    def all_leaves(self) -> Positions:
        return tuple(range(len(self.leaf_bits)))

    @cached_property
    def smallest_bytes(self) -> int:
        """Minimum ledger bytes, with one tile at a time."""
        return self.side_input_bytes + self.tile_bytes(1, self.all_leaves)

    @cached_property
    def longest_tile(self) -> int:
        """Length in grains of a tile whose largest request has `REQUEST_BYTES`."""
        widest = max(self.leaf_bits + self.write_bits)
        longest = REQUEST_BYTES // _nbytes(self.grains.size, widest)
        return max(1, min(longest, self.grains.count))

    def tables_bytes(self, tables: Positions) -> int:
        """Ledger bytes of these tables, each complete in memory."""
        return sum(_block(self.table_bytes[i]) for i in tables)

    def held_tables(self, room: int) -> Positions:
        """The tables to keep in memory if ``room`` bytes are free: those that are read most often,
        as long as enough memory for the merge itself remains."""
        often = [i for i, times in enumerate(self.table_reads) if times > 1]
        held: list[int] = []
        for i in sorted(often, key=lambda i: -self.table_reads[i]):
            if room - self.tables_bytes((*held, i)) >= 2 * self.smallest_bytes:
                held.append(i)
        return tuple(sorted(held))

    def preferred_bytes(self, rest: Positions, room: int, capacity: int) -> int:
        """Ledger bytes for good performance if ``rest`` is not in memory yet.

        ``room`` bytes of the whole ``capacity`` are free.
        """
        other = self.side_input_bytes + self.tables_bytes(self.held_tables(room))
        return other + self._preferred(rest, room - other, capacity - other)

    def _preferred(self, rest: Positions, room: int, capacity: int) -> int:
        if len(self.passes) > 1:
            fit = ResidentFit.of(self, rest)
            if fit.minimum() <= room:
                return min(fit.needed(self.longest_tile), room)
        tiles = min(TILES_IN_FLIGHT, -(-self.grains.count // self.longest_tile))
        streaming = tiles * self.tile_bytes(self.longest_tile, rest)
        return min(streaming, max(capacity // 2, self.tile_bytes(1, rest)))

    def resident_or_streamed(self, rest: Positions, available: int) -> tuple[Positions, int, int]:
        """The leaves of ``rest`` to keep for all passes, the tile length, the number of tiles kept.

        The tile length is in grains. All tiles are kept if there is room, otherwise as many as fit
        next to tiles streamed at full speed.
        """
        available -= self.side_input_bytes
        streaming = ResidentFit(self, (), rest)
        if len(self.passes) == 1:
            return (), self._longest(streaming, available), 0
        fit = ResidentFit.of(self, rest)
        if fit.minimum() <= available:
            tile = self._longest(fit, available)
            return fit.resident, tile, -(-self.grains.count // tile)
        tile = self._longest(streaming, available)
        room = available - streaming.needed(self.longest_tile)
        if room <= 0:  # more memory first makes tiles longer; it must never cause more reads
            return (), tile, 0
        count = room // self.input_bytes(tile, fit.resident)
        return fit.resident, tile, min(count, -(-self.grains.count // tile))

    def _longest(self, fit: ResidentFit, available: int) -> int:
        """The longest tile that fits into ``available`` bytes; at least one grain."""
        low, high = 1, self.longest_tile
        while low < high:
            middle = (low + high + 1) // 2
            if fit.needed(middle) <= available:
                low = middle
            else:
                high = middle - 1
        return low


@dataclass(frozen=True, slots=True)
class ResidentFit:
    """Memory for reading everything once: ``resident`` leaves are kept for all passes, ``late``
    leaves are only needed by the last pass."""

    merge_shape: MergeShape
    resident: Positions
    late: Positions

    @staticmethod
    def of(merge_shape: MergeShape, rest: Positions) -> ResidentFit:
        """The leaves of ``rest``, divided by whether a statistics pass needs them."""
        early = {i for leaves in merge_shape.passes[:-1] for i in leaves}
        resident = tuple(i for i in rest if i in early)
        return ResidentFit(merge_shape, resident, tuple(i for i in rest if i not in early))

    def needed(self, tile: int) -> int:
        """Ledger bytes at full speed with tiles of ``tile`` grains."""
        return self._bytes(tile, TILES_IN_FLIGHT)

    def minimum(self) -> int:
        """Minimum ledger bytes."""
        return self._bytes(1, 1)

    def _bytes(self, tile: int, in_flight: int) -> int:
        tiles = -(-self.merge_shape.grains.count // tile)
        moving = min(in_flight, tiles) * self.merge_shape.tile_bytes(tile, self.late)
        return tiles * self.merge_shape.input_bytes(tile, self.resident) + moving


@dataclass(frozen=True, eq=False)
class TileFlow:
    """How the inputs of a kind of merge are read.

    ``tile`` is the tile length in grains. ``kept_before`` are leaves that an earlier merge left in
    memory; ``kept_fresh`` those that are read whole, into one block, because a later merge needs
    them; ``resident`` those that stay from their first pass to the last in the first
    ``resident_tiles`` tiles; the others are streamed. If ``memos``, the memos of all tiles stay
    too. ``held`` are the tables that are in memory completely.
    """

    merge_shape: MergeShape
    tile: int
    kept_before: Positions
    kept_fresh: Positions
    resident: Positions
    resident_tiles: int
    memos: bool = False
    held: Positions = ()

    @property
    def tiles(self) -> int:
        return -(-self.merge_shape.grains.count // self.tile)

    def index(self, first: int) -> int:
        """Index of the tile that begins with grain ``first``."""
        return first // self.tile

    def is_resident(self, position: int, first: int) -> bool:
        """Whether the tile that begins with grain ``first`` keeps a leaf for the next pass."""
        return self.index(first) < self.resident_tiles and position in self.resident

    def reads(self, number: int, first: int) -> Positions:
        """The leaves that a tile reads from storage in pass ``number``."""
        return (self._reads if self.index(first) < self.resident_tiles else self._streamed)[number]

    @cached_property
    def _reads(self) -> tuple[Positions, ...]:
        """For each pass, the leaves read by tiles that are kept."""
        return self._read_once(self.kept_fresh + self.resident)

    @cached_property
    def _streamed(self) -> tuple[Positions, ...]:
        """For each pass, the leaves read by the other tiles."""
        return self._read_once(self.kept_fresh)

    def _read_once(self, once: Positions) -> tuple[Positions, ...]:
        in_memory = set(self.kept_before)
        result = []
        for leaves in self.merge_shape.passes:
            result.append(tuple(i for i in leaves if i not in in_memory))
            in_memory.update(i for i in leaves if i in once)
        return tuple(result)

    @cached_property
    def kept_bytes(self) -> int:
        """Ledger bytes of leaves and side inputs that are in memory completely."""
        kept = self.merge_shape.whole_bytes(self.kept_fresh + self.kept_before)
        return self.merge_shape.side_input_bytes + self.merge_shape.tables_bytes(self.held) + kept

    @cached_property
    def resident_bytes(self) -> int:
        """Ledger bytes kept until the last pass."""
        memos = self.tiles * self.merge_shape.tile_memo_bytes(self.tile) if self.memos else 0
        return memos + self.resident_tiles * self.merge_shape.input_bytes(self.tile, self.resident)

    @cached_property
    def granted_bytes(self) -> int:
        """Total ledger bytes granted, for kept inputs and all tiles."""
        streamed = sum(self._moving_bytes(reads) for reads in self._streamed)
        resident = sum(self._moving_bytes(reads, self.resident) for reads in self._reads)
        outputs = self.tiles * self.merge_shape.output_bytes(self.tile)
        moving = (self.tiles - self.resident_tiles) * streamed + self.resident_tiles * resident
        whole = self.merge_shape.side_input_bytes + self.merge_shape.whole_bytes(self.kept_fresh)
        whole += self.merge_shape.tables_bytes(self.held)
        return whole + self.resident_bytes + moving + outputs

    @cached_property
    def moving_bytes(self) -> int:
        """Ledger bytes of one tile that are not kept, in the pass with the most."""
        outputs = [0] * (len(self._reads) - 1) + [self.merge_shape.output_bytes(self.tile)]
        kinds = []
        if self.resident_tiles:
            kinds.append([self._moving_bytes(reads, self.resident) for reads in self._reads])
        if self.resident_tiles < self.tiles:
            kinds.append([self._moving_bytes(reads) for reads in self._streamed])
        return max((a + b for kind in kinds for a, b in zip(kind, outputs, strict=True)), default=0)

    @cached_property
    def working_bytes(self) -> int:
        """Ledger bytes in use while the merge runs at full speed."""
        in_flight = min(self.tiles, TILES_IN_FLIGHT) * self.moving_bytes
        return self.kept_bytes + self.resident_bytes + in_flight

    @cached_property
    def read_bytes(self) -> int:
        """Bytes read by all passes, with side inputs, if none is missing."""
        grains, bits = self.merge_shape.grains, self.merge_shape.leaf_bits
        streamed = sum(_nbytes(grains.total, bits[i]) for reads in self._streamed for i in reads)
        resident = self.resident_elements
        more = sum(_nbytes(resident, bits[i]) for reads in self._reads for i in reads)
        less = sum(_nbytes(resident, bits[i]) for reads in self._streamed for i in reads)
        sizes = self.merge_shape.table_bytes
        tables = sum(self.table_reads(i) * nbytes for i, nbytes in enumerate(sizes))
        return streamed + more - less + sum(self.merge_shape.side_bytes) + tables

    def table_reads(self, position: int) -> int:
        """How many times a table is read."""
        return 1 if position in self.held else self.merge_shape.table_reads[position]

    @property
    def resident_elements(self) -> int:
        """Number of elements in tiles kept from the first pass to the last."""
        grains = self.merge_shape.grains
        return min(self.resident_tiles * self.tile * grains.size, grains.total)

    def times_read(self, position: int) -> tuple[int, int]:
        """Number of passes that read a leaf: in kept tiles, in other tiles."""
        return (
            sum(position in reads for reads in self._reads),
            sum(position in reads for reads in self._streamed),
        )

    def _moving_bytes(self, reads: Positions, resident: Positions = ()) -> int:
        """Ledger bytes of the blocks of one tile for leaves that it reads and does not keep."""
        own = tuple(i for i in reads if i not in self.kept_fresh and i not in resident)
        return self.merge_shape.input_bytes(self.tile, own)


def _nbytes(elements: int, bits: int | Fraction) -> int:
    return -(-elements * bits // 8)


def _block(nbytes: int) -> int:
    return block_bytes(span_bytes(nbytes))
