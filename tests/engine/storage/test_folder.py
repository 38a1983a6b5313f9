"""Small files of a checkpoint are read whole, or refused with what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.folder import LocalFile, LocalFolder


def test_what_is_no_file_too_large_or_elsewhere_is_refused(tmp_path: Path) -> None:
    inside = tmp_path / "model"
    inside.mkdir()
    (inside / "config.json").write_text("{}")
    (tmp_path / "secret").write_text("other")
    (inside / "link.json").symlink_to(tmp_path / "secret")
    (inside / "folder.json").mkdir()
    os.mkfifo(inside / "pipe.json")
    folder = LocalFolder(inside)
    assert folder.read("config.json", 2) == b"{}"
    assert LocalFile(inside / "config.json").read("config.json", 2) == b"{}"
    for name, words in {
        "config.json": "is larger than 0 MiB: check that it is the right file",
        "link.json": "is a link that leads outside the checkpoint's directory, to .*replace the",
        "folder.json": "is not a file: replace it",
        "pipe.json": "is not a file: replace it",
        "none.json": "No such file or directory",
    }.items():
        with pytest.raises(CheckpointError, match=words):
            folder.read(name, 1)
    with pytest.raises(CheckpointError, match="File name too long"):
        folder.source("a" * 300)
