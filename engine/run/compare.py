"""A sink that writes nothing and compares results with those recorded earlier."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from mergeloom.engine.graph.graph import OutputFile, Write
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.output.journal import FinishedTensor


class ComparingSink:
    """Compares the results of a run whose graph has exactly the writes of ``recorded``.

    ``differing`` has the names of the tensors that differ.
    """

    def __init__(self, recorded: Mapping[Write, FinishedTensor]) -> None:
        self.differing: list[str] = []
        self._recorded = recorded
        self._lock = threading.Lock()

    def writer(self, file: OutputFile) -> NullWriter:
        return NullWriter()

    def completed(
        self, write: Write, digest: str, block_bytes: int, error: float | None = None
    ) -> None:
        if self._recorded[write].digest != digest:
            with self._lock:
                self.differing.append(write.name)


class NullWriter:
    """A writer that discards everything."""

    def write(self, start: int, stop: int, block: Block, at: int) -> None:
        pass
