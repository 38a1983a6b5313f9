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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.grains import Access
from mergeloom.engine.graph.kernel import Copy, Kernel

if TYPE_CHECKING:
    import networkx

Shape = tuple[int, ...]


class Source(Protocol):
    """Where the bytes of loads come from: a file, later a remote object.

    ``identity`` names the content for the fingerprint: equal identities mean equal bytes.
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def identity(self) -> str: ...


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """The bytes of one tensor: ``nbytes`` from byte ``offset`` of ``source``."""

    source: Source
    offset: int
    dtype: DType
    shape: Shape
    name: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.size


@dataclass(frozen=True, slots=True, eq=False)
class Gather:
    """The aligned inputs of one merge, in order; the same node may stand there twice."""

    inputs: tuple[Load | Merge, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Merge:
    """One kernel over one gather; an input of another merge, or written, or both.

    The result has the shape of the inputs. It is float32 until a `Write` rounds it once, except
    for a copy, whose bytes are those of its input where the dtypes are equal.
    """

    gather: Gather
    kernel: Kernel
    name: str

    @property
    def shape(self) -> Shape:
        return self.gather.inputs[0].shape


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """One slot of an output file: ``merge`` rounded to ``dtype``, from byte ``offset`` on."""

    merge: Merge
    file: OutputFile
    offset: int
    dtype: DType
    name: str

    @property
    def shape(self) -> Shape:
        return self.merge.shape

    @property
    def nbytes(self) -> int:
        return math.prod(self.merge.shape) * self.dtype.size


@dataclass(frozen=True, slots=True, eq=False)
class OutputFile:
    """One output shard: ``header`` are its first bytes, ``size`` its length in bytes."""

    name: str
    header: bytes = field(repr=False)
    size: int


class GraphError(Exception):
    """A graph that breaks its specification: a defect of a planner, not of its input."""


@dataclass(frozen=True, slots=True)
class Graph:
    """All tasks of one run. ``merges`` and ``writes`` stand in the order of the output."""

    loads: tuple[Load, ...]
    merges: tuple[Merge, ...]
    writes: tuple[Write, ...]
    files: tuple[OutputFile, ...]

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
        writes = tuple(write for write in self.writes if write not in finished)
        return Graph(*_reachable(writes), writes, self.files)

    def verify(self) -> None:
        """Check the specification.

        Raises:
            GraphError: shapes or dtypes disagree; write slots overlap or leave a gap in a file;
                two writes have one name; a load or a merge is not used; an input lies outside its
                source.
        """
        loads, merges = _reachable(self.writes)
        if set(loads) != set(self.loads) or set(merges) != set(self.merges):
            raise GraphError("a task is not used by any write, or is not listed")
        for load in self.loads:
            if load.offset < 0 or load.offset + load.nbytes > load.source.size:
                raise GraphError(f"{load.name!r} lies outside {load.source.name!r}")
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
            if integer and copied != write.dtype:
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
        sources: dict[int, str] = {}
        for load in self.loads:
            identity = sources.setdefault(id(load.source), load.source.identity)
            numbers[load] = len(numbers)
            digest.update(f"L{identity}|{load.offset}|{load.dtype}|{load.shape}\n".encode())
        for merge in self.merges:
            inputs = ",".join(str(numbers[node]) for node in merge.gather.inputs)
            numbers[merge] = len(numbers)
            digest.update(f"M{inputs}|{merge.kernel!r}|{merge.kernel.version}\n".encode())
        for file in self.files:
            digest.update(f"F{file.name}|{file.size}\n".encode())
            digest.update(file.header)
        for write in self.writes:
            slot = f"W{numbers[write.merge]}|{write.file.name}|{write.offset}|{write.dtype}\n"
            digest.update(slot.encode())
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
        for write in self.writes:
            graph.add_node(write, kind="write")
            graph.add_edge(write.merge, write)
        return graph


class GraphBuilder:
    """Collects tasks, keeping one node for equal loads and one for equal merges."""

    def __init__(self) -> None:
        self._loads: dict[tuple[int, int, str, Shape], Load] = {}
        self._merges: dict[tuple[tuple[int, ...], Kernel], Merge] = {}
        self._sources: dict[int, Source] = {}

    def load(self, source: Source, offset: int, dtype: DType, shape: Shape, name: str) -> Load:
        """The load of these bytes."""
        self._sources[id(source)] = source  # keeps the id from being used again
        key = (id(source), offset, dtype.code, shape)
        node = self._loads.get(key)
        if node is None:
            node = self._loads[key] = Load(source, offset, dtype, shape, name)
        return node

    def merge(self, inputs: Sequence[Load | Merge], kernel: Kernel, name: str) -> Merge:
        """The merge of ``inputs`` by ``kernel``; ``name`` serves messages only."""
        key = (tuple(map(id, inputs)), kernel)
        node = self._merges.get(key)
        if node is None:
            node = self._merges[key] = Merge(Gather(tuple(inputs)), kernel, name)
        return node

    def build(self, writes: Sequence[Write], files: Sequence[OutputFile]) -> Graph:
        """The graph of everything that ``writes`` need."""
        return Graph(*_reachable(writes), tuple(writes), tuple(files))


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
    """The loads below ``root``, each once, in the order of first use."""
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


def _reachable(writes: Iterable[Write]) -> tuple[tuple[Load, ...], tuple[Merge, ...]]:
    loads: dict[Load, None] = {}
    merges: dict[Merge, None] = {}
    for write in writes:
        if write.merge in merges:
            continue
        for merge in tree(write.merge):
            merges[merge] = None
            for node in merge.gather.inputs:
                if isinstance(node, Load):
                    loads[node] = None
    return tuple(loads), tuple(merges)


def _verify_merge(merge: Merge) -> None:
    inputs = merge.gather.inputs
    if not inputs:
        raise GraphError(f"{merge.name!r} has no input")
    if any(node.shape != merge.shape for node in inputs):
        shapes = ", ".join(str(node.shape) for node in inputs)
        raise GraphError(f"{merge.name!r}: shapes differ: {shapes}")
    if isinstance(merge.kernel, Copy):
        if len(inputs) != 1:
            raise GraphError(f"{merge.name!r} copies {len(inputs)} inputs")
    elif any(isinstance(node, Load) and not node.dtype.floating for node in inputs):
        raise GraphError(f"{merge.name!r} computes with an integer tensor")


def _verify_tiling(file: OutputFile, writes: list[Write]) -> None:
    end = len(file.header)
    for write in sorted(writes, key=lambda write: (write.offset, write.nbytes)):
        if write.offset != end:
            raise GraphError(f"{file.name!r}: {write.name!r} at {write.offset}, expected {end}")
        end += write.nbytes
    if end != file.size:
        raise GraphError(f"{file.name!r} has {file.size} bytes, its slots end at {end}")
