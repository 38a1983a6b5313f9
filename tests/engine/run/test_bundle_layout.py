"""Where inputs and outputs of a bundle lie."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from mergeloom.engine.base.dtypes import BF16, F32
from mergeloom.engine.base.units import MIB
from mergeloom.engine.memory.pages import PAGE
from mergeloom.engine.plan.bundles import bundle_merges
from mergeloom.engine.plan.schedule import schedule
from mergeloom.engine.run.bundle_layout import BundleLayout
from tests.engine.kernels import Weighted
from tests.engine.support import GraphMaker, spec


def layout(tmp_path: Path, keep: slice) -> tuple[BundleLayout, int]:
    """That of a bundle of merges of two files, and the number of these merges."""
    maker = GraphMaker(tmp_path)
    ones, others = (maker.loads(dtype, [(50, 20)] * 30, 5) for dtype in (BF16, F32))
    pairs = list(zip(ones, others, strict=True))[keep]
    merges = [maker.builder.merge(pair, Weighted((0.5, 0.5)), "t") for pair in pairs]
    graph = maker.graph({f"t{n}": (merge, BF16) for n, merge in enumerate(merges)})
    made = schedule(graph, None, spec(1, 50 * MIB, 0))
    bundle = max((each for each in bundle_merges(made) if not isinstance(each, int)), key=len)
    return BundleLayout.of(bundle), len(bundle)


def test_adjacent_inputs_are_one_request(tmp_path: Path) -> None:
    found, count = layout(tmp_path, slice(None))
    assert count > 2
    assert [read.nbytes for read in found.reads] == [2000 * count, 4000 * count]
    assert [each.stop - each.start for each in found.writes] == [2000 * count]


def test_gaps_are_not_read(tmp_path: Path) -> None:
    found, count = layout(tmp_path, slice(None, None, 2))
    assert len(found.reads) == 2 * count
    assert sum(read.nbytes for read in found.reads) == 6000 * count
    assert len(found.writes) == 1


def test_pages_of_memory_match_pages_of_files_and_nothing_overlaps(tmp_path: Path) -> None:
    for keep in (slice(None), slice(None, None, 3)):
        folder = tmp_path / str(keep.step)
        folder.mkdir()
        found, _ = layout(folder, keep)
        places = [(read.at, read.at + read.nbytes) for read in found.reads]
        assert all((read.at - read.bytes.position(0)) % PAGE == 0 for read in found.reads)
        assert all((each.at - each.start) % PAGE == 0 for each in found.writes)
        places += [(each.at, each.at + each.stop - each.start) for each in found.writes]
        widened = sorted((a // PAGE, -(-b // PAGE)) for a, b in places)
        assert all(one[1] <= two[0] for one, two in pairwise(widened))
        assert widened[-1][1] * PAGE <= found.nbytes
        for load, at in found.inputs.items():
            assert any(a <= at and at + load.nbytes <= b for a, b in places)
