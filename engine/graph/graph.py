"""The task graph: load, gather, merge and write, one chain for each output tensor.

A node is a small immutable record that refers to the nodes it needs, so a graph is acyclic as it
is built, and `Graph.verify` proves the rest. Equal loads and equal merges are one node: a layer
that stands twice in the output is read and computed once and written twice.

    Load ─┐
    Load ─┼─► Gather ─► Merge ─► Write
    Merge ┘                 └──► Write
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import field
from typing import TYPE_CHECKING

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.grains import Access
from mergeloom.engine.base.records import dataclass, record
from mergeloom.engine.graph.kernel import Copy, Kernel
from mergeloom.engine.graph.pieces import Bytes, Range
from mergeloom.engine.storage.source import Source

if TYPE_CHECKING:
    import networkx

Shape = tuple[int, ...]


class GraphError(Exception):
    """A graph that breaks its specification: a defect of a planner, not of its input."""


@record(frozen=True, slots=True, eq=False)
class Load:
    """One tensor as it is stored; ``bytes`` says where its bytes lie."""

    bytes: Bytes
    dtype: DType
    shape: Shape
    name: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.dtype.nbytes(math.prod(self.shape))

    @property
    def stored_bytes(self) -> int:
        """Bytes that are read for it: all but those that are missing."""
        return self.bytes.stored(0, self.nbytes)


@record(frozen=True, slots=True, eq=False)
class Gather:
    """What one merge needs.

    ``inputs`` are aligned, element for element, in order; the same node may stand there twice.
    ``side`` are small tensors of shapes of their own, which are held whole while the merge runs.
    """

    inputs: tuple[Load | Merge, ...]
    side: tuple[Load, ...] = ()


@record(frozen=True, slots=True, eq=False)
class Merge:
    """One kernel over one gather; an input of another merge, or written, or both.

    The result has the shape that `Kernel.output_shape` says. It is float32 until a `Write` rounds
    it once, except for a copy, whose bytes are those of its input where the dtypes are equal.

    Raises:
        GraphError: the shapes of the inputs do not go together.
    """

    gather: Gather
    kernel: Kernel
    name: str
    shape: Shape = field(init=False)
    is_flat: bool = field(init=False)
    """Whether no input is a merge."""

    def __post_init__(self) -> None:
        nodes = self.gather.inputs
        inputs = [node.shape for node in nodes]
        object.__setattr__(self, "is_flat", not any(isinstance(n, Merge) for n in nodes))
        try:
            shape = self.kernel.output_shape(inputs, [load.shape for load in self.gather.side])
        except ValueError as error:
            raise GraphError(f"{self.name!r}: {error}") from error
        object.__setattr__(self, "shape", shape)


@record(frozen=True, slots=True, eq=False)
class Write:
    """One slot of an output file: ``merge`` rounded to ``dtype``, from byte ``offset`` on.

    ``part`` 0 is the merge's result, others are the kernel's `Kernel.parts`. ``seen_as`` is the
    shape in the file, where it is not the merge's.
    """

    merge: Merge
    file: OutputFile
    offset: int
    dtype: DType
    name: str
    part: int = 0
    seen_as: Shape | None = None

    @property
    def shape(self) -> Shape:
        return self.merge.shape if self.seen_as is None else self.seen_as

    @property
    def nbytes(self) -> int:
        return self.dtype.nbytes(math.prod(self.merge.shape))


@dataclass(frozen=True, slots=True, eq=False)
class OutputFile:
    """One output shard: ``header`` are its first bytes, ``size`` its length in bytes."""

    name: str
    header: bytes = field(repr=False)
    size: int


@dataclass(frozen=True, slots=True, repr=False)
class Graph:
    """All tasks of one run. ``merges`` and ``writes`` stand in the order of the output.

    Of ``measured`` merges nothing is written: only their statistics are wanted.
    """

    loads: tuple[Load, ...]
    merges: tuple[Merge, ...]
    writes: tuple[Write, ...]
    files: tuple[OutputFile, ...]
    measured: tuple[Merge, ...] = ()

    def __repr__(self) -> str:
        return f"<Graph of {', '.join(f'{n} {kind}' for kind, n in self.counts().items())}>"

    def counts(self) -> dict[str, int]:
        """Number of tasks of each kind."""
        merges = len(self.merges)
        return {
            "load": len(self.loads),
            "gather": merges,
            "merge": merges,
            "write": len(self.writes),
        }

    def without(self, done: Iterable[Write]) -> Graph:
        """The graph that is left when ``done`` need not be written any more."""
        finished = set(done)
        if not finished:
            return self
        writes = tuple(write for write in self.writes if write not in finished)
        return Graph(*_reachable(writes), writes, self.files)

    def verify(self) -> None:
        """Check the specification.

        Raises:
            GraphError: shapes or dtypes disagree; write slots overlap or leave a gap in a file;
                two writes have one name; a load or a merge is not used; an input lies outside its
                source, or has other bytes than its shape asks for.
        """
        loads, merges = _reachable(self.writes, self.measured)
        if (loads, merges) != (self.loads, self.merges) and (
            set(loads) != set(self.loads) or set(merges) != set(self.merges)
        ):
            raise GraphError("a task is not used by any write, or is not listed")
        for load in self.loads:
            _verify_load(load)
        for merge in self.merges:
            _verify_merge(merge)
        slots: dict[OutputFile, list[Write]] = {file: [] for file in self.files}
        names: set[str] = set()
        for write in self.writes:
            if write.name in names:
                raise GraphError(f"{write.name!r} is written twice")
            names.add(write.name)
            if write.file not in slots:
                raise GraphError(f"{write.name!r} goes to an unknown file")
            copied = copied_dtype(write.merge)
            integer = not write.dtype.floating or (copied is not None and not copied.floating)
            if integer and copied != write.dtype and not write.merge.kernel.parts:
                raise GraphError(f"{write.name!r} would change an integer tensor's dtype")
            slots[write.file].append(write)
        for file, inside in slots.items():
            _verify_tiling(file, inside)

    def fingerprint(self) -> str:
        """Hexadecimal digest of what the run computes: inputs, arithmetic, output layout.

        Budgets, threads and devices do not enter it.
        """
        digest = hashlib.blake2b(digest_size=16)
        numbers: dict[Load | Merge, int] = {}
        identities: dict[int, str] = {}

        def identity(source: Source) -> str:
            found = identities.get(id(source))
            if found is None:
                found = identities[id(source)] = source.identity
            return found

        lines: list[str] = []
        for load in self.loads:
            numbers[load] = len(numbers)
            stored = load.bytes.describe(identity)
            lines.append(f"L{stored}|{load.dtype.name}|{load.shape}\n")
        kernels: dict[int, str] = {}  # tensors share kernels
        for merge in self.merges:
            inputs = ",".join([str(numbers[node]) for node in merge.gather.inputs])
            side = "".join([f";{numbers[node]}" for node in merge.gather.side])
            numbers[merge] = len(numbers)
            kernel = kernels.get(id(merge.kernel))
            if kernel is None:
                kernel = f"{merge.kernel!r}|{merge.kernel.version}"
                kernels[id(merge.kernel)] = kernel
            lines.append(f"M{inputs}{side}|{kernel}\n")
        digest.update("".join(lines).encode())
        for file in self.files:
            digest.update(f"F{file.name}|{file.size}\n".encode())
            digest.update(file.header)
        slots = [
            f"W{numbers[write.merge]}|{write.file.name}|{write.offset}|{write.dtype.name}"
            f"{write.part or ''}\n"
            for write in self.writes
        ]
        digest.update("".join(slots).encode())
        return digest.hexdigest()

    def to_networkx(self) -> networkx.DiGraph[Load | Gather | Merge | Write]:
        """The graph for analysis and export; nodes are the task records."""
        import networkx

        graph: networkx.DiGraph[Load | Gather | Merge | Write] = networkx.DiGraph()
        for merge in self.merges:
            graph.add_node(merge, kind="merge")
            graph.add_node(merge.gather, kind="gather")
            graph.add_edge(merge.gather, merge)
            for position, node in enumerate(merge.gather.inputs):
                graph.add_node(node, kind="load" if isinstance(node, Load) else "merge")
                graph.add_edge(node, merge.gather, position=position)
            for load in merge.gather.side:
                graph.add_node(load, kind="load")
                graph.add_edge(load, merge.gather, side=True)
        for write in self.writes:
            graph.add_node(write, kind="write")
            graph.add_edge(write.merge, write)
        return graph


class GraphBuilder:
    """Collects tasks, keeping one node for equal loads and one for equal merges."""

    def __init__(self) -> None:
        self._loads: dict[tuple[Hashable, str, Shape], Load] = {}
        self._merges: dict[tuple[tuple[int, ...], tuple[int, ...], Kernel], Merge] = {}

    def load(self, source: Source, offset: int, dtype: DType, shape: Shape, name: str) -> Load:
        """The load of a tensor that lies in ``source`` from byte ``offset`` on, without a gap."""
        nbytes = dtype.nbytes(math.prod(shape))
        node = self._loads.get(((id(source), offset, nbytes), dtype.code, shape))
        return node or self.load_bytes(Range(source, offset, nbytes), dtype, shape, name)

    def load_bytes(self, stored: Bytes, dtype: DType, shape: Shape, name: str) -> Load:
        """The load of a tensor whose bytes lie as ``stored`` says."""
        key = (stored.key, dtype.code, shape)
        node = self._loads.get(key)
        if node is None:
            # The node keeps the sources, by whose ids bytes are told apart.
            node = self._loads[key] = Load(stored, dtype, shape, name)
        return node

    def merge(
        self,
        inputs: Sequence[Load | Merge],
        kernel: Kernel,
        name: str,
        side: Sequence[Load] = (),
    ) -> Merge:
        """The merge of ``inputs`` by ``kernel``, with ``side`` beside them; ``name`` serves
        messages only.

        Raises:
            GraphError: their shapes do not go together.
        """
        key = (tuple(map(id, inputs)), tuple(map(id, side)), kernel)
        node = self._merges.get(key)
        if node is None:
            node = self._merges[key] = Merge(Gather(tuple(inputs), tuple(side)), kernel, name)
        return node

    def build(self, writes: Sequence[Write], files: Sequence[OutputFile]) -> Graph:
        """The graph of everything that ``writes`` need."""
        return Graph(*_reachable(writes), tuple(writes), tuple(files))

    def measuring(self, merges: Sequence[Merge]) -> Graph:
        """The graph that finds out the statistics of ``merges`` and writes nothing."""
        own = tuple(dict.fromkeys(merges))  # equal ones are one
        return Graph(*_reachable((), own), (), (), own)


def tree(root: Merge) -> Iterator[Merge]:
    """``root`` and the merges it takes as inputs, each once, inputs before their users."""
    seen: set[Merge] = set()
    stack: list[tuple[Merge, bool]] = [(root, False)]
    while stack:
        merge, ready = stack.pop()
        if ready:
            yield merge
        elif merge not in seen:
            seen.add(merge)
            stack.append((merge, True))
            stack.extend(
                (node, False) for node in reversed(merge.gather.inputs) if isinstance(node, Merge)
            )


def leaves(root: Merge) -> tuple[Load, ...]:
    """The aligned loads below ``root``, each once, in the order of first use."""
    found: dict[Load, None] = {}
    for merge in tree(root):
        for node in merge.gather.inputs:
            if isinstance(node, Load):
                found[node] = None
    return tuple(found)


def access(root: Merge) -> Access:
    """The strictest access pattern of ``root`` and of the merges below it."""
    return max(merge.kernel.access for merge in tree(root))


def copied_dtype(merge: Merge) -> DType | None:
    """The dtype whose bytes ``merge`` passes on unchanged; ``None`` if it computes."""
    node = merge.gather.inputs[0]
    if isinstance(merge.kernel, Copy):
        return node.dtype if isinstance(node, Load) else copied_dtype(node)
    return None


def copied_bytes(graph: Graph) -> int:
    """Bytes of the output that are those of an input."""
    return sum(w.nbytes for w in graph.writes if copied_dtype(w.merge) == w.dtype)


def _reachable(
    writes: Iterable[Write], measured: Iterable[Merge] = ()
) -> tuple[tuple[Load, ...], tuple[Merge, ...]]:
    loads: dict[Load, None] = {}
    merges: dict[Merge, None] = {}
    for root in (*(write.merge for write in writes), *measured):
        if root in merges:
            continue
        for merge in (root,) if root.is_flat else tree(root):
            merges[merge] = None
            for node in (*merge.gather.inputs, *merge.gather.side):
                if isinstance(node, Load):
                    loads[node] = None
    return tuple(loads), tuple(merges)


def _verify_load(load: Load) -> None:
    stored = load.bytes
    for part in (stored,) if isinstance(stored, Range) else stored.ranges():
        if part.offset < 0 or part.offset + part.length > part.source.size:
            raise GraphError(f"{load.name!r} lies outside {part.source.name!r}")
    if stored.nbytes != load.nbytes:
        raise GraphError(f"{load.name!r} has {stored.nbytes} bytes, not {load.nbytes}")
    if load.shape and load.shape[-1] % load.dtype.block:
        raise GraphError(f"rows of {load.name!r} are no whole blocks")


def _verify_merge(merge: Merge) -> None:
    inputs = merge.gather.inputs
    if isinstance(merge.kernel, Copy):
        if len(inputs) != 1:
            raise GraphError(f"{merge.name!r} copies {len(inputs)} inputs")
    elif not merge.kernel.integers and any(
        isinstance(node, Load) and not node.dtype.floating for node in inputs
    ):
        raise GraphError(f"{merge.name!r} computes with an integer tensor")


def _verify_tiling(file: OutputFile, writes: list[Write]) -> None:
    end = len(file.header)
    for write in sorted(writes, key=lambda write: (write.offset, write.nbytes)):
        if write.offset != end:
            raise GraphError(f"{file.name!r}: {write.name!r} at {write.offset}, expected {end}")
        end += write.nbytes
    if end != file.size:
        raise GraphError(f"{file.name!r} has {file.size} bytes, its slots end at {end}")
