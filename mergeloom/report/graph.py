"""Writes the task graph of a plan to a file for other tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.errors import LoomError, OutputError
from mergeloom.engine.graph.graph import Gather, Graph, Load, Merge, Write
from mergeloom.engine.graph.networkx_graph import to_networkx

if TYPE_CHECKING:
    import networkx

SUFFIXES = (".graphml", ".dot", ".gv", ".json")

_SHAPES = {"load": "cylinder", "gather": "point", "merge": "box", "write": "note"}


def write_graph(graph: Graph, path: Path) -> None:
    """Write the task graph to ``path``, in the format given by its suffix.

    Raises:
        LoomError: the suffix is unknown.
        OutputError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise LoomError(
            f"--graph '{path}': its suffix must say the format: .graphml, .dot or .json"
        )
    labelled = labelled_graph(graph)
    try:
        if suffix == ".graphml":
            import networkx

            networkx.write_graphml(labelled, path)
        elif suffix == ".json":
            from networkx import node_link_data

            document = node_link_data(labelled, edges="edges")
            path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        else:
            path.write_text("\n".join(_dot_lines(labelled)) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error.strerror}") from error


def labelled_graph(graph: Graph) -> networkx.DiGraph[str]:
    """The graph with strings as nodes and plain values as attributes.

    Nodes are ``KIND:NUMBER``, numbered in execution order; an edge into a gather has the
    ``position`` of the input.
    """
    import networkx

    result: networkx.DiGraph[str] = networkx.DiGraph()
    names: dict[Load | Gather | Merge | Write, str] = {}
    tasks = to_networkx(graph)
    for kind, task in _tasks_in_order(graph):
        if task not in names:
            names[task] = f"{kind}:{len(names)}"
            result.add_node(names[task], **_attributes(task))
    for start, end, attributes in tasks.edges(data=True):
        result.add_edge(names[start], names[end], **attributes)
    return result


def _tasks_in_order(graph: Graph) -> Iterator[tuple[str, Load | Gather | Merge | Write]]:
    yield from (("load", load) for load in graph.loads)
    for merge in graph.merges:
        yield "gather", merge.gather
        yield "merge", merge
    yield from (("write", write) for write in graph.all_writes)


def _attributes(task: Load | Gather | Merge | Write) -> dict[str, Any]:
    if isinstance(task, Gather):
        return {"kind": "gather", "inputs": len(task.inputs), "side": len(task.side_loads)}
    shape = "x".join(map(str, task.shape))
    if isinstance(task, Merge):
        kernel = type(task.kernel).__name__
        return {"kind": "merge", "name": task.name, "kernel": kernel, "shape": shape}
    place = {"name": task.name, "dtype": task.dtype.name, "shape": shape, "bytes": task.nbytes}
    if isinstance(task, Write):
        return {"kind": "write", **place, "file": task.file.name, "offset": task.offset}
    parts = list(task.bytes.ranges())
    first = {"file": parts[0].source.name, "offset": parts[0].offset} if parts else {}
    return {"kind": "load", **place, **first, "parts": len(parts)}


def _dot_lines(graph: networkx.DiGraph[str]) -> Iterator[str]:
    yield "digraph tasks {"
    yield '  rankdir=LR; node [fontname="sans-serif"];'
    for name, attributes in graph.nodes(data=True):
        lines = [attributes.get("name", ""), attributes.get("kernel", attributes.get("dtype", ""))]
        label = "\\n".join(_escaped(line) for line in (*lines, attributes.get("shape", "")) if line)
        yield f'  "{name}" [label="{label}", shape={_SHAPES[attributes["kind"]]}];'
    for start, end in graph.edges():
        yield f'  "{start}" -> "{end}";'
    yield "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
