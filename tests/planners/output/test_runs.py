"""What is copied from neighbouring bytes stays together, so that it can be cloned."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from mergeloom.engine.base.dtypes import BF16, BY_NAME, F32, DType
from mergeloom.engine.graph.graph import GraphBuilder, Load, Merge, copied_dtype
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.graph.pieces import Range
from mergeloom.engine.graph.verify import verify
from mergeloom.planners.models.model import OutputTensor
from mergeloom.planners.output.runs import ALIGNMENT
from mergeloom.planners.output.shards import Layout, lay_out
from tests.engine.kernels import Weighted
from tests.engine.plan.test_schedule import Disk

MB = 1 << 20


class LayoutMaker:
    """Makes tensors that are copied from, or computed of, files of which one holds several."""

    def __init__(self) -> None:
        self.builder = GraphBuilder()
        self.files: dict[str, Disk] = {}
        self.ends: dict[str, int] = {}
        self.places: list[tuple[Disk, int, DType, int]] = []

    def file(self, name: str, header: int) -> None:
        self.files[name], self.ends[name] = Disk(name), header

    def stored(self, name: str, nbytes: int, dtype: DType = BF16) -> int:
        """The next tensor of a file; its number."""
        self.places.append((self.files[name], self.ends[name], dtype, nbytes))
        self.ends[name] += nbytes
        return len(self.places) - 1

    def copy(self, place: int, name: str, into: DType | None = None) -> OutputTensor:
        merge = self.builder.merge([self._load(place)], Copy(), name)
        return OutputTensor(name, merge, into or self.places[place][2])

    def merged(self, place: int, name: str) -> OutputTensor:
        merge = self.builder.merge([self._load(place)], Weighted((2.0,)), name)
        return OutputTensor(name, merge, self.places[place][2])

    def _load(self, place: int) -> Load:
        disk, offset, dtype, nbytes = self.places[place]
        return self.builder.load(disk, offset, dtype, (nbytes // dtype.size,), "l")


def first(merge: Merge) -> Range:
    node = merge.gather.inputs[0]
    assert isinstance(node, Load)
    assert isinstance(node.bytes, Range)
    return node.bytes


def disagreeing(layout: Layout) -> int:
    """Bytes of copies that lie otherwise modulo a block than they do in their sources."""
    return sum(
        write.nbytes
        for write in layout.writes
        if copied_dtype(write.merge) == write.dtype
        and (write.offset - first(write.merge).offset) % ALIGNMENT
    )


def stack(layers: Sequence[int], most: int, extra: int = 0) -> tuple[Layout, int]:
    """Layers of 60 MB, of which two models have 20 in files of five, and a norm of ``extra`` bytes
    in each; the layout, and the bytes of the output."""
    maker = LayoutMaker()
    numbers: dict[tuple[int, int], list[int]] = {}
    for model in (0, 1):
        for shard in range(4):
            name = f"{model}-{shard}"
            maker.file(name, 8 + 8 * (100 * model + 7 * shard + 1))
            for layer in range(5 * shard, 5 * shard + 5):
                parts = [maker.stored(name, size * MB) for size in (20, 40)]
                if extra:
                    parts.insert(1, maker.stored(name, extra))
                numbers[model, layer] = parts
    tensors = [
        maker.copy(place, f"layers.{number}.{part}")
        for number, layer in enumerate(layers)
        for part, place in enumerate(numbers[layer // 20, layer % 20])
    ]
    layout = lay_out(tensors, most, {})
    graph = maker.builder.build(layout.writes, layout.files)
    verify(graph)
    return layout, sum(tensor.nbytes for tensor in tensors)


def test_a_stack_of_two_models_agrees_with_its_sources() -> None:
    layout, nbytes = stack([*range(15), *range(25, 40)], 300 * MB)
    assert disagreeing(layout) == 0
    assert len(layout.files) == nbytes // (300 * MB)
    for file in layout.files:
        sources = {first(w.merge).source for w in layout.writes if w.file is file}
        assert len(sources) == 1


def test_repeated_and_alternating_layers_agree_with_their_sources() -> None:
    for layers in ([*range(12), *range(8, 20)], [n + 20 * (n % 2) for n in range(20)]):
        layout, nbytes = stack(layers, 310 * MB)
        assert disagreeing(layout) == 0
        assert len(layout.files) <= nbytes // (310 * MB) + 5


def test_offsets_agree_though_sizes_are_no_multiples_of_a_block() -> None:
    """A layer that is left out shifts those after it: they are in other shards, or copied."""
    layout, _ = stack([*range(4), *range(6, 20)], 310 * MB, extra=3072)
    assert disagreeing(layout) == 0
    again, _ = stack([0, 2, 4, 6, 8, 20, 22, 24], 300 * MB, extra=1 << 9)
    assert disagreeing(again) == 0
    assert len(again.files) == 8


def test_runs_longer_than_a_shard_are_cut_in_parts_alike() -> None:
    layout, _ = stack(range(5), 250 * MB)
    sizes = sorted(file.size for file in layout.files)
    assert len(sizes) == 2
    assert sizes[1] < 1.5 * sizes[0]
    assert disagreeing(layout) == 0


def test_tensors_that_fit_one_shard_are_in_one() -> None:
    layout, _ = stack([0, 1, 20, 21], 300 * MB)
    assert [file.name for file in layout.files] == ["model.safetensors"]
    assert [write.name for write in layout.writes] == [
        f"layers.{n}.{p}" for n in range(4) for p in (0, 1)
    ]


def test_computed_tensors_stay_in_order() -> None:
    maker = LayoutMaker()
    maker.file("a", 8 + 8 * 99)
    places = [maker.stored("a", 40 * MB) for _ in range(12)]
    tensors = [
        maker.copy(place, f"{n:02}", F32) if n % 3 == 2 else maker.merged(place, f"{n:02}")
        for n, place in enumerate(places)
    ]
    layout = lay_out(tensors, 200 * MB, {})
    filled = [[w.name for w in layout.writes if w.file is file] for file in layout.files]
    assert sorted(name for names in filled for name in names) == [f"{n:02}" for n in range(12)]
    assert [min(names) for names in filled] == sorted(min(names) for names in filled)
    assert all(len(file.header) % ALIGNMENT == 0 for file in layout.files)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),  # file
            st.sampled_from([BF16, F32, BY_NAME["uint8"]]),
            st.integers(0, 9000),  # elements
            st.sampled_from(["copy", "copy", "copy", "twice", "merge", "skip"]),
        ),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from([1, 20_000, 60_000, 200_000]),
)
def test_any_layout_has_every_tensor_once_and_keeps_the_shard_size(
    entries: list[tuple[int, DType, int, str]], most: int
) -> None:
    maker = LayoutMaker()
    for file in range(3):
        maker.file(f"{file}", 8 + 8 * (77 * file + 1))
    tensors = []
    for number, (file, dtype, elements, how) in enumerate(entries):
        place = maker.stored(f"{file}", elements * dtype.size, dtype)
        if how == "merge" and dtype.floating:
            tensors.append(maker.merged(place, f"{number}"))
        elif how != "skip":
            tensors.append(maker.copy(place, f"{number}"))
        if how == "twice":
            tensors.append(maker.copy(place, f"{number} again"))
    layout = lay_out(tensors, most, {})
    verify(maker.builder.build(layout.writes, layout.files))  # slots tile their files
    assert sorted(w.name for w in layout.writes) == sorted(t.name for t in tensors)
    for write in layout.writes:
        assert write.offset % write.dtype.size == 0
    for file in layout.files:
        own = [write.nbytes for write in layout.writes if write.file is file]
        assert sum(own) <= most or sum(nbytes > 0 for nbytes in own) == 1
    again = lay_out(tensors, most, {})
    assert [file.header for file in again.files] == [file.header for file in layout.files]
