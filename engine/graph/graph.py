"""The task graph: load, gather, merge and write, one chain for each output tensor.

A node is a small immutable record that refers to the nodes it needs, so a graph is acyclic by
construction, and `Graph.verify` checks the rest. Equal loads and equal merges are one node: a layer
that occurs twice in the output is read and computed once, and written twice.

    Load ─┐
    Load ─┼─► Gather ─► Merge ─► Write
    Merge ┘                 └──► Write

The inputs of a merge are aligned with it, element for element. If its value is needed in another
arrangement, such as with reordered rows, it is spilled: written to a temporary file of the run.

    Merge ─► Spill ─► Load ─► Gather ─► Merge ─► Write
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import field
from functools import cached_property

from mergeloom.engine.base.dtypes import F32, DType
from mergeloom.engine.base.grains import Access
from mergeloom.engine.base.records import dataclass, record
from mergeloom.engine.graph.kernel import Copy, Kernel
from mergeloom.engine.graph.pieces import Bytes, Range
from mergeloom.engine.storage.source import Reader, ReadOptions, Source

Shape = tuple[int, ...]


class GraphError(Exception):
    """A graph that violates its specification: a bug in a planner, not an error in its input."""


@record(frozen=True, slots=True, eq=False)
class Load:
    """One stored tensor; ``bytes`` says where its bytes are."""

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
        return self.bytes.nbytes

    @property
    def stored_bytes(self) -> int:
        """Bytes that are read for it: all except holes."""
        stored = self.bytes
        return stored.length if isinstance(stored, Range) else stored.stored(0, stored.nbytes)


@record(frozen=True, slots=True, eq=False)
class Gather:
    """The inputs of one merge.

    ``inputs`` are aligned element for element; a node may occur twice. ``side`` are small tensors
    of other shapes, which are in memory completely while the merge runs. ``tables`` are matrices
    that are read in blocks of rows, as often as the kernel needs (`Kernel.table_reads`); they may
    be larger than memory.
    """

    inputs: tuple[Load | Merge, ...]
    side: tuple[Load, ...] = ()
    tables: tuple[Load, ...] = ()

    @property
    def side_loads(self) -> tuple[Load, ...]:
        """The loads other than inputs: side tensors and tables."""
        return (*self.side, *self.tables) if self.tables else self.side


@record(frozen=True, slots=True, eq=False)
class Merge:
    """One kernel applied to one gather; an input of another merge, or written, or both.

    The result has the shape given by `Kernel.output_shape`. It is float32 until a `Write` rounds it
    once, except for a copy with equal dtypes, which passes on the bytes of its input.

    Raises:
        GraphError: the shapes of the inputs do not match.
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
        object.__setattr__(self, "is_flat", Merge not in map(type, nodes))
        try:
            shape = self.kernel.output_shape(
                inputs, [load.shape for load in self.gather.side_loads]
            )
        except ValueError as error:
            raise GraphError(f"{self.name!r}: {error}") from error
        object.__setattr__(self, "shape", shape)


@record(frozen=True, slots=True, eq=False)
class Write:
    """One slot of an output file: ``merge`` rounded to ``dtype``, from byte ``offset`` on.

    ``part`` 0 is the result of the merge, ``part`` n its n-th additional result (`Kernel.parts`).
    ``file_shape`` is the shape in the file, if it differs from that of the merge.
    """

    merge: Merge
    file: OutputFile
    offset: int
    dtype: DType
    name: str
    part: int = 0
    file_shape: Shape | None = None

    @property
    def shape(self) -> Shape:
        return self.merge.shape if self.file_shape is None else self.file_shape

    @property
    def nbytes(self) -> int:
        return self.dtype.nbytes(math.prod(self.merge.shape))


@dataclass(frozen=True, slots=True, eq=False)
class OutputFile:
    """One output shard: ``header`` is its first bytes, ``size`` its length in bytes."""

    name: str
    header: bytes = field(repr=False)
    size: int


@dataclass(frozen=True, eq=False)
class Spill:
    """The value of a merge as a source of bytes: float32, in row-major order.

    ``write`` writes it to a separate file, which only the same run can read.
    """

    merge: Merge
    number: int
    write: Write = field(init=False)

    def __post_init__(self) -> None:
        size = F32.nbytes(math.prod(self.merge.shape))
        file = OutputFile(f"{SPILLED}{self.number}", b"", size)
        write = Write(self.merge, file, 0, F32, f"{self.merge.name} ({file.name})")
        object.__setattr__(self, "write", write)

    @property
    def name(self) -> str:
        return self.merge.name

    @property
    def size(self) -> int:
        return self.write.file.size

    @cached_property
    def identity(self) -> str:
        """Digest of everything the value is computed from."""
        loads, merges, _ = _reachable((self.merge,))
        lines, _ = _describe(loads, merges)
        return "value-" + hashlib.blake2b("".join(lines).encode(), digest_size=16).hexdigest()

    @property
    def description(self) -> str:
        return f"{self.size} bytes, {self.identity}"

    def identified(self, digest: str) -> Spill:
        return self

    def open(self, options: ReadOptions) -> Reader:
        raise AssertionError(f"the value of '{self.name}' is only read by the run that computes it")


SPILLED = "spilled-"
"""Prefix of the names of files with spilled values."""


def spills_of(load: Load) -> Sequence[Spill]:
    """The spilled values that a load reads."""
    stored = load.bytes
    if isinstance(stored, Range):  # most are
        return [stored.source] if isinstance(stored.source, Spill) else ()
    return [part.source for part in stored.ranges() if isinstance(part.source, Spill)]


@dataclass(frozen=True, slots=True, repr=False)
class Graph:
    """All tasks of one run. ``merges`` and ``writes`` are in output order.

    ``measured`` merges are not written: only their statistics are computed. ``spills`` are the
    values that loads read, each after those it depends on.
    """

    loads: tuple[Load, ...]
    merges: tuple[Merge, ...]
    writes: tuple[Write, ...]
    files: tuple[OutputFile, ...]
    measured: tuple[Merge, ...] = ()
    spills: tuple[Spill, ...] = ()

    def __repr__(self) -> str:
        return f"<Graph of {', '.join(f'{n} {kind}' for kind, n in self.counts().items())}>"

    @property
    def all_writes(self) -> tuple[Write, ...]:
        """The writes of spilled values, then those of the output."""
        return (*(spill.write for spill in self.spills), *self.writes)

    def counts(self) -> dict[str, int]:
        """Number of tasks of each kind."""
        merges, writes = len(self.merges), len(self.writes) + len(self.spills)
        return {"load": len(self.loads), "gather": merges, "merge": merges, "write": writes}

    def without(self, done: Iterable[Write]) -> Graph:
        """The remaining graph if ``done`` need not be written any more."""
        finished = set(done)
        if not finished:
            return self
        writes = tuple(write for write in self.writes if write not in finished)
        return _graph_of(writes, self.files, bool(self.spills))

    def fingerprint(self) -> str:
        """Hexadecimal digest of the computation: inputs, arithmetic, output layout.

        It does not depend on budgets, threads or devices.
        """
        digest = hashlib.blake2b(digest_size=16)
        lines, numbers = _describe(self.loads, self.merges)
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


Inputs = tuple[tuple["Load | Merge", ...], tuple[Load, ...], tuple[Load, ...]]
"""The fields of a gather."""


class GraphBuilder:
    """Creates the tasks of a graph, with one node for equal loads and for equal merges."""

    def __init__(self) -> None:
        self._whole: defaultdict[int, dict[int, Load]] = defaultdict(dict)
        """The first load of a contiguous tensor at an offset, by `id` of the source and offset."""
        self._loads: dict[tuple[Hashable, str, Shape], Load] = {}
        self._merges: dict[tuple[int, Inputs], Merge] = {}
        """Merges by kernel number and inputs; nodes are equal only to themselves."""
        self._spills: dict[Merge, Spill] = {}
        self._kernels: dict[Kernel, int] = {}
        self._numbers: dict[int, tuple[int, Kernel]] = {}
        """Numbers of kernels by `id`, the same for equal kernels; most tensors share kernels."""

    def load(self, source: Source, offset: int, dtype: DType, shape: Shape, name: str) -> Load:
        """The load of a contiguous tensor in ``source`` from byte ``offset`` on."""
        return self.load_bytes(
            Range(source, offset, dtype.nbytes(math.prod(shape))), dtype, shape, name
        )

    def load_bytes(self, stored: Bytes, dtype: DType, shape: Shape, name: str) -> Load:
        """The load of a tensor with the bytes ``stored``."""
        # The nodes keep the sources alive whose ids are in the keys.
        if isinstance(stored, Range):  # most are, and few offsets are read in two ways
            runs = self._whole[id(stored.source)]
            node = runs.get(stored.offset)
            if node is None:
                node = runs[stored.offset] = Load(stored, dtype, shape, name)
                return node
            own = node.bytes.nbytes, node.dtype.code, node.shape
            if own == (stored.length, dtype.code, shape):
                return node
        key = stored.key, dtype.code, shape
        node = self._loads.get(key)
        if node is None:
            node = self._loads[key] = Load(stored, dtype, shape, name)
        return node

    def merge(
        self,
        inputs: Sequence[Load | Merge],
        kernel: Kernel,
        name: str,
        side: Sequence[Load] = (),
        tables: Sequence[Load] = (),
    ) -> Merge:
        """The merge of ``inputs`` by ``kernel``, with ``side`` tensors and ``tables``; ``name`` is
        only for messages.

        Raises:
            GraphError: their shapes do not match.
        """
        number, _ = self._numbers.get(id(kernel)) or self._number_of(kernel)
        key = number, (tuple(inputs), tuple(side), tuple(tables))
        node = self._merges.get(key)
        if node is None:
            node = self._merges[key] = Merge(Gather(*key[1]), kernel, name)
        return node

    def spill(self, merge: Merge) -> Load:
        """The value of ``merge`` as a load that can be read in any order: float32, of its shape."""
        spill = self._spills.get(merge)
        if spill is None:
            spill = self._spills[merge] = Spill(merge, len(self._spills))
        return self.load(spill, 0, F32, merge.shape, merge.name)

    def _number_of(self, kernel: Kernel) -> tuple[int, Kernel]:
        number = self._kernels.setdefault(kernel, len(self._kernels))
        self._numbers[id(kernel)] = found = number, kernel
        return found

    def build(self, writes: Sequence[Write], files: Sequence[OutputFile]) -> Graph:
        """The graph of everything that ``writes`` need."""
        return _graph_of(tuple(writes), tuple(files), bool(self._spills))

    def measuring(self, merges: Sequence[Merge]) -> Graph:
        """A graph that computes the statistics of ``merges`` and writes nothing."""
        own = tuple(dict.fromkeys(merges))  # merges are unique
        loads, found, spills = _reachable(own)
        return Graph(loads, found, (), (), own, spills)


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
    """The dtype of the bytes that ``merge`` passes on unchanged; ``None`` if it computes."""
    node = merge.gather.inputs[0]
    if isinstance(merge.kernel, Copy):
        return node.dtype if isinstance(node, Load) else copied_dtype(node)
    return None


def copied_bytes(graph: Graph) -> int:
    """Bytes of the output that are copied from an input."""
    return sum(w.nbytes for w in graph.writes if copied_dtype(w.merge) == w.dtype)


def _graph_of(
    writes: tuple[Write, ...], files: tuple[OutputFile, ...], spilling: bool = True
) -> Graph:
    loads, merges, spills = _reachable([write.merge for write in writes], spilling)
    return Graph(loads, merges, writes, files, (), spills)


def _reachable(
    roots: Iterable[Merge], spilling: bool = True
) -> tuple[tuple[Load, ...], tuple[Merge, ...], tuple[Spill, ...]]:
    """Everything that ``roots`` need; merges and spills after their dependencies. Without
    ``spilling``, no load reads a spilled value."""
    loads: dict[Load, None] = {}
    merges: dict[Merge, None] = {}
    spills: dict[Spill, None] = {}

    def visit(root: Merge) -> None:
        for merge in (root,) if root.is_flat else tree(root):
            if merge in merges:
                continue
            gather = merge.gather
            nodes = (*gather.inputs, *gather.side_loads) if gather.side_loads else gather.inputs
            for node in nodes:
                if isinstance(node, Load):
                    if spilling and node not in loads:
                        for spill in spills_of(node):
                            visit(spill.merge)
                            spills[spill] = None
                    loads[node] = None
            merges[merge] = None

    for root in roots:
        if root not in merges:
            visit(root)
    return tuple(loads), tuple(merges), tuple(spills)


def _describe(
    loads: Sequence[Load], merges: Sequence[Merge]
) -> tuple[list[str], dict[Load | Merge, str]]:
    """A descriptive line for each load and merge, and the numbers used for them."""
    nodes: tuple[Load | Merge, ...] = (*loads, *merges)
    numbers = dict(zip(nodes, map(str, range(len(nodes))), strict=True))
    lines = _describe_loads(loads)
    of = numbers.__getitem__
    kernels: dict[int, str] = {}  # tensors share kernels
    for merge in merges:
        gather = merge.gather
        kernel = kernels.get(id(merge.kernel))
        if kernel is None:
            kernel = f"|{merge.kernel!r}|{merge.kernel.version}\n"
            kernels[id(merge.kernel)] = kernel
        inputs = ",".join(map(of, gather.inputs))
        if gather.side or gather.tables:
            side = "".join([f";{of(node)}" for node in gather.side])
            inputs += side + "".join([f":{of(node)}" for node in gather.tables])
        lines.append(f"M{inputs}{kernel}")
    return lines, numbers


def _describe_loads(loads: Iterable[Load]) -> list[str]:
    """A descriptive line for each load."""
    identities: dict[int, str] = {}  # tensors share sources, dtypes and shapes
    kinds: dict[int, tuple[DType, str]] = {}
    """Dtype and description by `id` of the shape, which tensors of one header share."""

    def identity(source: Source) -> str:
        found = identities.get(id(source))
        if found is None:
            found = identities[id(source)] = source.identity
        return found

    lines = []
    for load in loads:
        stored, dtype, shape = load.bytes, load.dtype, load.shape
        kind = kinds.get(id(shape))
        if kind is None or kind[0] is not dtype:
            kind = kinds[id(shape)] = dtype, f"|{dtype.name}|{shape}\n"
        if type(stored) is Range and (known := identities.get(id(stored.source))) is not None:
            lines.append(f"L{known}|{stored.offset}{kind[1]}")  # as most are described
        else:
            lines.append(f"L{stored.describe(identity)}{kind[1]}")
    return lines
