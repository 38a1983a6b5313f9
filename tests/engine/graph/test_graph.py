"""The graph's specification: what `verify` finds, what the fingerprint covers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import networkx
import pytest

from mergeloom.engine.base.dtypes import BF16, BY_NAME, F32
from mergeloom.engine.graph.graph import (
    Gather,
    Graph,
    GraphBuilder,
    GraphError,
    Merge,
    OutputFile,
    Write,
)
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.graph.networkx_graph import to_networkx
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.graph.verify import verify
from tests.engine.kernels import Weighted
from tests.engine.plan.test_schedule import Disk


def small(weight: float = 1.0, name: str = "disk") -> Graph:
    builder = GraphBuilder()
    disk = Disk(name, 1000)
    loads = [builder.load(disk, offset, BF16, (4, 5), f"l{offset}") for offset in (0, 40)]
    merged = builder.merge(loads, Weighted((weight, 2.0)), "merged")
    copied = builder.merge(loads[:1], Copy(), "copied")
    again = builder.merge([merged, loads[1]], Weighted((1.0, 1.0)), "again")
    file = OutputFile("out", b"head", 4 + 40 + 40 + 80)
    writes = [
        Write(merged, file, 4, BF16, "a"),
        Write(copied, file, 44, BF16, "b"),
        Write(again, file, 84, F32, "c"),
    ]
    return builder.build(writes, [file])


def test_a_sound_graph_is_verified() -> None:
    graph = small()
    verify(graph)
    assert graph.counts() == {"load": 2, "gather": 3, "merge": 3, "write": 3}


def with_write(graph: Graph, number: int, **changes: Any) -> Graph:
    writes = list(graph.writes)
    write = writes[number]
    fields = {name: getattr(write, name) for name in ("merge", "file", "offset", "dtype", "name")}
    writes[number] = Write(**{**fields, **changes})
    return replace(graph, writes=tuple(writes))


def with_merge(graph: Graph, kernel: Any, inputs: Callable[[Graph], tuple[Any, ...]]) -> Graph:
    file = OutputFile("out", b"", 40)
    builder = GraphBuilder()
    merge = Merge(Gather(inputs(graph)), kernel, "bad")
    return builder.build([Write(merge, file, 0, BF16, "bad")], [file])


DEFECTS: dict[str, tuple[Callable[[], Graph], str]] = {
    "gap": (lambda: with_write(small(), 1, offset=48), "at 48, expected 44"),
    "overlap": (lambda: with_write(small(), 2, offset=80), "at 80, expected 84"),
    "end": (lambda: with_write(small(), 2, dtype=BF16), "has 164 bytes, its slots end at 124"),
    "file": (lambda: with_write(small(), 0, file=OutputFile("x", b"", 1)), "unknown file"),
    "integer": (lambda: with_write(small(), 0, dtype=BY_NAME["int16"]), "integer tensor's dtype"),
    "unused": (lambda: replace(small(), writes=small().writes[:1]), "not used by any write"),
    "nothing": (lambda: with_merge(small(), Copy(), lambda g: ()), "has no input"),
    "two copies": (lambda: with_merge(small(), Copy(), lambda g: g.loads), "copies 2 inputs"),
}


@pytest.mark.parametrize("case", DEFECTS)
def test_every_defect_is_found(case: str) -> None:
    make, expected = DEFECTS[case]
    with pytest.raises(GraphError, match=expected):
        verify(make())


def test_inputs_outside_their_source_and_of_other_shapes_are_found() -> None:
    builder = GraphBuilder()
    disk = Disk("disk", 50)
    near, far = (builder.load(disk, offset, BF16, (4, 5), "l") for offset in (0, 40))
    wide = builder.load(disk, 0, BF16, (5, 5), "wide")
    file = OutputFile("out", b"", 40)

    def graph(*loads: Any) -> Graph:
        merge = builder.merge(loads, Weighted((1.0,) * len(loads)), "m")
        return builder.build([Write(merge, file, 0, BF16, "m")], [file])

    verify(graph(near))
    with pytest.raises(GraphError, match="lies outside 'disk'"):
        verify(graph(far))
    with pytest.raises(GraphError, match="shapes differ"):
        verify(graph(near, wide))


def test_the_fingerprint_covers_inputs_kernels_and_layout() -> None:
    original = small().fingerprint()
    assert small().fingerprint() == original
    others = [small(weight=2.0), small(name="other"), with_write(small(), 0, dtype=F32)]
    assert len({original, *(graph.fingerprint() for graph in others)}) == 4


def test_networkx_sees_a_graph_without_cycles() -> None:
    exported = to_networkx(small())
    assert networkx.is_directed_acyclic_graph(exported)
    kinds = [data["kind"] for _, data in exported.nodes(data=True)]
    assert {kind: kinds.count(kind) for kind in kinds} == small().counts()
    longest = networkx.dag_longest_path(exported)
    assert [exported.nodes[node]["kind"] for node in longest] == [
        "load", "gather", "merge", "gather", "merge", "write",
    ]  # fmt: skip


def test_without_finished_writes_the_graph_has_only_what_the_rest_needs() -> None:
    graph = small()
    rest = graph.without(graph.writes[:2])
    assert [write.name for write in rest.writes] == ["c"]
    assert len(rest.loads) == 2
    assert len(rest.merges) == 2
    assert graph.without(graph.writes).loads == ()


def in_other_rows(weight: float) -> Graph:
    """Two writes, of which the second needs rows of a value that is computed."""
    builder = GraphBuilder()
    source = builder.load(Disk("disk", 1000), 0, F32, (3, 4), "x")
    value = builder.merge([source], Weighted((weight,)), "value")
    spilled = builder.spill(value)
    rows = StoredTensor(spilled.bytes, spilled.dtype, spilled.shape).rows([2, 0])
    taken = builder.load_bytes(rows.bytes, rows.dtype, rows.shape, "rows")
    file = OutputFile("out", b"", 80)
    merges = {"whole": value, "rows": builder.merge([taken], Weighted((1.0,)), "rows")}
    places = zip(merges.items(), (0, 48), strict=True)
    return builder.build([Write(m, file, at, F32, name) for (name, m), at in places], [file])


def test_a_value_in_other_rows_is_written_and_loaded() -> None:
    graph = in_other_rows(0.5)
    verify(graph)
    assert [spill.size for spill in graph.spills] == [48]
    assert [write.name for write in graph.all_writes][1:] == ["whole", "rows"]
    assert networkx.is_directed_acyclic_graph(to_networkx(graph))
    assert graph.counts()["write"] == 3
    assert in_other_rows(0.5).fingerprint() == graph.fingerprint()
    assert in_other_rows(0.25).without([]).fingerprint() != graph.fingerprint()
    whole, rows = graph.writes
    assert graph.without([rows]).spills == ()
    rest = graph.without([whole])
    assert rest.spills == graph.spills
    assert len(rest.merges) == 2
