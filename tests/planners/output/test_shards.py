"""Shards and the output's configuration."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from mergeloom.engine.base.dtypes import BF16, BY_NAME, F32, DType
from mergeloom.engine.graph.graph import GraphBuilder
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.graph.verify import verify
from mergeloom.engine.storage.safetensors import parse_header
from mergeloom.planners.models.model import OutputTensor
from mergeloom.planners.output.shards import ALIGNMENT, lay_out
from tests.engine.plan.test_schedule import Disk

dtypes = st.sampled_from([BF16, F32, BY_NAME["int64"], BY_NAME["uint8"]])
shapes = st.lists(st.integers(0, 40), max_size=3).map(tuple)


@given(st.lists(st.tuples(dtypes, shapes), min_size=1, max_size=20), st.integers(1, 5000))
def test_slots_tile_their_shards_and_shards_keep_their_size(
    entries: list[tuple[DType, tuple[int, ...]]], limit: int
) -> None:
    builder = GraphBuilder()
    disk = Disk("disk")
    tensors = [
        OutputTensor(
            f"t{number}",
            builder.merge([builder.load(disk, number << 20, dtype, shape, "l")], Copy(), "c"),
            dtype,
        )
        for number, (dtype, shape) in enumerate(entries)
    ]
    layout = lay_out(tensors, limit, {"format": "pt"})
    verify(builder.build(layout.writes, layout.files))
    assert sorted(write.name for write in layout.writes) == sorted(t.name for t in tensors)
    for write in layout.writes:
        assert write.offset % write.dtype.size == 0
    for file in layout.files:
        own = [write for write in layout.writes if write.file is file]
        nbytes = sum(write.nbytes for write in own)
        assert nbytes <= limit or sum(write.nbytes > 0 for write in own) == 1
        assert len(file.header) % ALIGNMENT == 0
        found, metadata = parse_header(file.header[8:], file.size, file.name)
        assert metadata == {"format": "pt"}
        assert {name: entry.start for name, entry in found.items()} == {
            write.name: write.offset for write in own
        }
    if len(layout.files) == 1:
        assert (layout.files[0].name, layout.indices) == ("model.safetensors", {})
    else:
        assert layout.indices.keys() == {"model.safetensors.index.json"}
        index = json.loads(layout.indices["model.safetensors.index.json"])
        assert index["weight_map"] == {write.name: write.file.name for write in layout.writes}
        assert index["metadata"]["total_size"] == sum(
            math.prod(shape) * dtype.size for dtype, shape in entries
        )
