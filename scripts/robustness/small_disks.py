"""Small file systems that can be filled and made read-only."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.fixtures.volume import call


@contextmanager
def mounted(folder: Path, kind: str, size: int) -> Iterator[Path]:
    """Mount a ``tmpfs``, or an ``ext4`` in a file, of ``size`` bytes. Needs root.

    Raises:
        OSError: it cannot be mounted.
    """
    volume, image = folder / "volume", folder / "image"
    volume.mkdir()
    try:
        if kind == "tmpfs":
            call("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(volume))
        else:
            with open(image, "wb") as file:
                file.truncate(size)
            call("mkfs.ext4", "-q", "-m", "0", str(image))
            call("mount", "-o", "loop", str(image), str(volume))
        try:
            yield volume
        finally:
            call("umount", str(volume))
    finally:
        volume.rmdir()
        image.unlink(missing_ok=True)


def remount(volume: Path, mode: str) -> None:
    """Remount a file system as ``ro`` or ``rw``."""
    call("mount", "-o", f"remount,{mode}", str(volume))


def free_bytes(volume: Path) -> int:
    """Number of free bytes on a file system."""
    return shutil.disk_usage(volume).free


def fill(path: Path, size: int) -> None:
    """Write a file that occupies ``size`` bytes of its disk, or a few blocks less where the file
    system needs these for the list of the file's extents.
    """
    with open(path, "wb") as file:
        end, step = 0, max(size, 1)
        while step and end < max(size, 1):
            part = min(step, max(size, 1) - end)
            try:
                os.posix_fallocate(file.fileno(), end, part)
                end += part
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                step //= 2
