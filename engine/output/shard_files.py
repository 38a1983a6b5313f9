"""Files of shards: their names while they are being written, and their headers."""

from __future__ import annotations

import os
from pathlib import Path

from mergeloom.engine.graph.graph import OutputFile


def has_header(path: Path, file: OutputFile) -> bool:
    """Whether the file at ``path`` has the size and begins with the header of ``file``."""
    try:
        with open(path, "rb") as found:
            size = os.fstat(found.fileno()).st_size
            return size == file.size and found.read(len(file.header)) == file.header
    except OSError:
        return False


def partial_path(path: Path) -> Path:
    """Where a shard is written before it is complete."""
    return path.with_name(path.name + ".partial")
