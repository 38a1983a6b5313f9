"""A source in memory, for bytes that a planner computed, such as tables of rows."""

from __future__ import annotations

import hashlib
from dataclasses import field
from functools import cached_property

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.storage.source import ReadOptions


@dataclass(frozen=True)
class MemorySource:
    """A source whose bytes are ``content``; ``name`` is for messages."""

    content: bytes = field(repr=False)
    name: str

    @property
    def size(self) -> int:
        return len(self.content)

    @cached_property
    def identity(self) -> str:
        return "memory-" + hashlib.blake2b(self.content, digest_size=16).hexdigest()

    @property
    def description(self) -> str:
        return f"{self.size} bytes, {self.identity}"

    def identified(self, digest: str) -> MemorySource:
        return self

    def open(self, options: ReadOptions) -> MemoryReader:
        return MemoryReader(self.content)


class MemoryReader:
    """Reads bytes in memory."""

    connections = 1

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(
        self, start: int, stop: int, block: Block, at: int, may_overwrite: bool = True
    ) -> None:
        block.memory[at : at + stop - start] = self._content[start:stop]

    def check_unchanged(self) -> None:
        """Does nothing: bytes in memory cannot change."""

    def close(self) -> None:
        """Does nothing: nothing is open."""
