"""Which small merges run together, decided on paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergeloom.engine.base.dtypes import BF16
from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.graph import Graph, GraphBuilder, Load, OutputFile, Write
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.plan.bundles import BUNDLE_BYTES, bundle_merges
from mergeloom.engine.plan.schedule import schedule
from mergeloom.engine.storage.source import Reader, ReadOptions
from tests.engine.kernels import Normalised, Weighted
from tests.engine.support import spec

MACHINE = spec(2, 50 * MIB, 250 * MIB)


@dataclass(frozen=True)
class Disk:
    """A source that exists on paper only."""

    name: str
    size: int = 1 << 50
    identity: str = "disk"

    def open(self, options: ReadOptions) -> Reader:
        raise NotImplementedError


def loads(builder: GraphBuilder, sizes: Sequence[int], count: int = 2) -> list[list[Load]]:
    """For each size, ``count`` inputs of that many elements, each in a file of its own."""
    disks = [Disk(f"disk {number}") for number in range(count)]
    offsets = [sum(sizes[:number]) * 2 for number in range(len(sizes))]
    return [
        [builder.load(disk, offset, BF16, (size,), f"{offset}") for disk in disks]
        for size, offset in zip(sizes, offsets, strict=True)
    ]


def graph(sizes: Sequence[int], share: bool = False) -> Graph:
    builder = GraphBuilder()
    file = OutputFile("out", b"", sum(sizes) * 2)
    writes: list[Write] = []
    for number, own in enumerate(loads(builder, sizes)):
        first = writes[-1].merge.gather.inputs[:1] if share and number % 2 else own[:1]
        kernel = Normalised() if number % 3 else Weighted((0.5, 0.5))
        merge = builder.merge([*first, own[1]], kernel, f"t{number}")
        writes.append(Write(merge, file, sum(sizes[:number]) * 2, BF16, f"t{number}"))
    return builder.build(writes, [file])


def lengths(found: Graph, budget: int | None = None) -> list[int]:
    """How many merges each group has; 0 for one by itself."""
    made = schedule(found, budget, MACHINE)
    kinds = list(bundle_merges(made))
    assert sum(1 if isinstance(each, int) else len(each) for each in kinds) == len(made.merges)
    return [0 if isinstance(each, int) else len(each) for each in kinds]


def test_small_merges_that_follow_each_other_are_bundled() -> None:
    assert max(lengths(graph([1000] * 200))) > 10


def test_a_large_merge_stands_by_itself_between_bundles() -> None:
    found = lengths(graph([1000] * 40 + [8 << 20] + [1000] * 40))
    assert found.count(0) == 1
    assert sum(found) == 80


def test_a_bundle_needs_no_more_than_its_share_of_the_ledger() -> None:
    found = graph([20_000] * 300)
    smallest = schedule(found, None, MACHINE).minimum_bytes
    for budget in (smallest, smallest + 8 * MIB, None):
        made = schedule(found, budget, MACHINE)
        for group in bundle_merges(made):
            if not isinstance(group, int):
                needed = sum(merge.flow.merge_shape.smallest_bytes for merge in group)
                assert needed <= min(BUNDLE_BYTES, made.ledger_bytes // 8)


def test_merges_of_inputs_kept_for_others_are_not_bundled() -> None:
    builder = GraphBuilder()
    ((one, two),) = loads(builder, [1000])
    file = OutputFile("out", b"", 4000)
    merges = [builder.merge([one, two], Weighted(w), "t") for w in ((0.5, 0.5), (0.25, 0.75))]
    writes = [Write(merge, file, 2000 * n, BF16, f"t{n}") for n, merge in enumerate(merges)]
    assert lengths(builder.build(writes, [file])) == [0, 0]


def test_merges_that_read_inputs_several_times_are_not_bundled() -> None:
    """With passes that read again, what is read would not be what was predicted."""
    found = graph([200_000] * 4)
    smallest = schedule(found, None, MACHINE).minimum_bytes
    made = schedule(found, smallest, MACHINE)
    for group in bundle_merges(made):
        if not isinstance(group, int):
            for merge in group:
                assert merge.read_bytes == sum(load.nbytes for load in merge.work.leaves)


def test_a_copy_is_bundled_like_others() -> None:
    builder = GraphBuilder()
    file = OutputFile("out", b"", 200_000)
    writes = [
        Write(builder.merge([own], Copy(), "t"), file, 2000 * n, BF16, f"t{n}")
        for n, (own,) in enumerate(loads(builder, [1000] * 100, count=1))
    ]
    assert max(lengths(builder.build(writes, [file]))) > 5
