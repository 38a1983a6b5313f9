"""Shard files: partial names and headers."""

from __future__ import annotations

import os
from pathlib import Path

from mergeloom.engine.graph.graph import OutputFile


def has_header(path: Path, file: OutputFile) -> bool:
    """Whether the file at ``path`` has the size and header of ``file``."""
    try:
        with open(path, "rb") as found:
            size = os.fstat(found.fileno()).st_size
            return size == file.size and found.read(len(file.header)) == file.header
    except OSError:
        return False


def partial_path(path: Path) -> Path:
    """The path of a shard while it is being written."""
    return path.with_name(path.name + ".partial")


def name_in_header(file: str, tensor: str) -> str:
    """What the header of a shard calls a tensor: in a folder, what follows the folder's name."""
    folder = file.rpartition("/")[0]
    return tensor.removeprefix(f"{folder}/") if folder else tensor
