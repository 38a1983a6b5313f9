"""A sink that writes nothing: what is computed is compared with what was recorded before."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from mergeloom.engine.graph.graph import OutputFile, Write
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.output.journal import Finished


class ComparingSink:
    """Takes the results of a run whose graph has the writes of ``recorded``, and no others.

    ``differing`` are the names of those that are not as recorded.
    """

    def __init__(self, recorded: Mapping[Write, Finished]) -> None:
        self.differing: list[str] = []
        self._recorded = recorded
        self._lock = threading.Lock()

    def writer(self, file: OutputFile) -> Nowhere:
        return Nowhere()

    def completed(
        self, write: Write, digest: str, block_bytes: int, error: float | None = None
    ) -> None:
        if self._recorded[write].digest != digest:
            with self._lock:
                self.differing.append(write.name)


class Nowhere:
    """Where bytes go that are not to be written."""

    def write(self, start: int, stop: int, block: Block, at: int) -> None:
        pass
