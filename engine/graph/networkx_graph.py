"""The task graph as a networkx graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergeloom.engine.graph.graph import Gather, Graph, Load, Merge, Write, spills_of

if TYPE_CHECKING:
    import networkx


def to_networkx(tasks: Graph) -> networkx.DiGraph[Load | Gather | Merge | Write]:
    """The graph as a networkx graph; its nodes are the task records, each with its ``kind``."""
    import networkx

    graph: networkx.DiGraph[Load | Gather | Merge | Write] = networkx.DiGraph()
    for merge in tasks.merges:
        graph.add_node(merge, kind="merge")
        graph.add_node(merge.gather, kind="gather")
        graph.add_edge(merge.gather, merge)
        for position, node in enumerate(merge.gather.inputs):
            graph.add_node(node, kind="load" if isinstance(node, Load) else "merge")
            graph.add_edge(node, merge.gather, position=position)
        for load in merge.gather.side_loads:
            graph.add_node(load, kind="load")
            graph.add_edge(load, merge.gather, side=True)
    for write in tasks.all_writes:
        graph.add_node(write, kind="write")
        graph.add_edge(write.merge, write)
    for load in tasks.loads if tasks.spills else ():
        for spill in spills_of(load):
            graph.add_edge(spill.write, load)
    return graph
