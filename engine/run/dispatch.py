"""Walks a schedule in order: grants memory to merges and tiles, and requests their inputs.

It waits only for memory, and for values spilled by earlier merges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock

from mergeloom.engine.graph.graph import Load, Spill, Write
from mergeloom.engine.memory.ledger import Block, Ledger
from mergeloom.engine.memory.pages import page_offset, span_bytes
from mergeloom.engine.plan.bundles import bundle_merges
from mergeloom.engine.plan.schedule import Schedule, ScheduledMerge, Tile
from mergeloom.engine.run.bundle_layout import BundleLayout
from mergeloom.engine.run.loading import Loader
from mergeloom.engine.run.state import Bundle, HeldLoad, MergeRun, SmallRun, TileRun, elements


class Dispatcher:
    """Starts the merges of a schedule and adds them to ``running``.

    ``finish_empty`` finishes merges without tiles; ``await_spilled`` waits for spilled values;
    ``lock`` belongs to the executor.
    """

    def __init__(
        self,
        schedule: Schedule,
        ledger: Ledger,
        loader: Loader,
        lock: Lock,
        running: set[MergeRun],
        finish_empty: Callable[[MergeRun], None],
        await_spilled: Callable[[Sequence[Spill]], None],
    ) -> None:
        self._schedule = schedule
        self._ledger = ledger
        self._loader = loader
        self._lock = lock
        self._running = running
        self._finish_empty = finish_empty
        self._await_spilled = await_spilled
        self._kept: dict[Load, HeldLoad] = {}
        """Complete loads in memory for a merge that has not started."""

    def run(self) -> None:
        """Walk the schedule to its end.

        Raises:
            LedgerClosed: the run was stopped.
        """
        order = 0
        for group in bundle_merges(self._schedule):
            if isinstance(group, int):
                run = self._begin(self._schedule.merges[group])
                for tile in self._schedule.tiles(group):
                    self._start(order, tile, run)
                    order += 1
            else:
                self._start_bundle(order, group)
                order += 1

    def _start_bundle(self, order: int, merges: Sequence[ScheduledMerge]) -> None:
        layout = BundleLayout.of(merges)
        block = self._ledger.grant(layout.nbytes)
        self._loader.request_bundle(Bundle(order, list(map(SmallRun, merges)), layout, block))

    def _begin(self, scheduled: ScheduledMerge) -> MergeRun:
        if scheduled.work.awaited:
            self._await_spilled(scheduled.work.awaited)
        run = MergeRun(scheduled)
        for position in scheduled.flow.kept_fresh:
            load = scheduled.work.leaves[position]
            block = self._ledger.grant(span_bytes(load.nbytes))
            run.held[load] = HeldLoad(block, page_offset(load.bytes.position(0)), load.nbytes)
        for position in scheduled.flow.kept_before:
            load = scheduled.work.leaves[position]
            run.held[load] = self._kept.pop(load)
        for position in scheduled.kept_after:
            load = scheduled.work.leaves[position]
            self._kept[load] = run.held[load]
            with self._lock:
                run.held[load].users += 1
        with self._lock:
            self._running.add(run)
        if scheduled.work.grains.count == 0:
            self._finish_empty(run)
        else:
            self._read_side(run)
        return run

    def _read_side(self, run: MergeRun) -> None:
        """Request the side inputs and held tables of a merge, before its first tile."""
        work = run.scheduled.work
        held_tables = [work.tables[position] for position in run.scheduled.flow.held]
        for load in dict.fromkeys((*work.side, *held_tables)):
            block = self._ledger.grant(span_bytes(load.nbytes))
            at = page_offset(load.bytes.position(0))
            held = run.side[load] = HeldLoad(block, at, load.nbytes)
            self._loader.request_held(load, held)

    def _start(self, order: int, tile: Tile, run: MergeRun) -> None:
        work = run.scheduled.work
        inputs: dict[Load, tuple[Block, int]] = {}
        first, count = elements(tile, run.scheduled)
        transient: list[Block] = []
        for position in work.passes[tile.number].leaves:
            load = work.leaves[position]
            held = run.held.get(load)
            if held is not None:
                inputs[load] = held.block, held.at + load.dtype.nbytes(first)
                continue
            inputs[load] = self._tile_block(position, tile, run)
            if tile.writes or not run.scheduled.flow.is_resident(position, tile.first):
                transient.append(inputs[load][0])
        memo = self._memo_block(tile, run)
        if memo is not None and tile.writes:
            transient.append(memo)
        outputs: list[tuple[Write, Block, int]] = []
        if tile.writes:
            for write in work.writes:
                block = self._ledger.grant(span_bytes(write.dtype.nbytes(count)))
                at = page_offset(write.offset + write.dtype.nbytes(first))
                outputs.append((write, block, at))
        reads = [work.leaves[position] for position in tile.reads]
        task = TileRun(order, tile, run, inputs, outputs, transient, memo, len(reads) + 1)
        self._await_kept(task)
        for load in reads:
            block, at = inputs[load]
            self._loader.request_tile(task, load, block, at)
        self._loader.arrived(task)

    def _tile_block(self, position: int, tile: Tile, run: MergeRun) -> tuple[Block, int]:
        """The block of one input of one tile: a new one, or that of an earlier pass."""
        load = run.scheduled.work.leaves[position]
        flow = run.scheduled.flow
        key = load, flow.index(tile.first)
        if position not in tile.reads:
            return run.resident[key]
        first, count = elements(tile, run.scheduled)
        block = self._ledger.grant(span_bytes(load.dtype.nbytes(count)))
        found = block, page_offset(load.bytes.position(load.dtype.nbytes(first)))
        if flow.is_resident(position, tile.first):
            run.resident[key] = found
        return found

    def _memo_block(self, tile: Tile, run: MergeRun) -> Block | None:
        """The block of the memos of one tile, shared by all passes; ``None`` without memos."""
        flow = run.scheduled.flow
        if not flow.memos:
            return None
        index = flow.index(tile.first)
        if tile.number == 0:
            run.memos[index] = self._ledger.grant(flow.merge_shape.tile_memo_bytes(tile.grains))
        return run.memos.pop(index) if tile.writes else run.memos[index]

    def _await_kept(self, task: TileRun) -> None:
        """Make ``task`` wait for inputs that are still being read for an earlier merge."""
        run = task.merge
        leaves = run.scheduled.work.leaves
        kept = [leaves[position] for position in run.scheduled.flow.kept_before]
        awaited = [run.held[load] for load in kept if load in task.inputs]
        with self._lock:
            for held in (*awaited, *run.side.values()):
                if held.unread:
                    held.waiting.append(task)
                    task.pending += 1
