"""A compressing file system in a sparse file, for models larger than the disk. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType

_NEEDED = ("mkfs.btrfs", "mount", "umount")


class CompressedVolume:
    """A btrfs of ``size`` bytes in a sparse file under ``directory``, compressed by zstd.

    What is written costs the disk only its compressed size, and what is deleted gives it back.
    Use as a context: its value is where the volume is mounted; at the end all of it is removed.

    Raises:
        OSError: programs or permissions for it are missing.
    """

    def __init__(self, directory: Path, size: int) -> None:
        self._size = size
        self._image = directory / f"volume-{os.getpid()}.img"
        self.path = directory / f"volume-{os.getpid()}"

    def __enter__(self) -> Path:
        missing = [program for program in _NEEDED if shutil.which(program) is None]
        if missing:
            raise OSError(f"'{missing[0]}' is missing: install btrfs-progs and util-linux")
        if os.geteuid() != 0:
            raise OSError("mounting a volume needs root")
        try:
            with open(self._image, "wb") as file:
                file.truncate(self._size)
            self.path.mkdir()
            # No duplicate metadata: the disk below is not to be tested.
            _call("mkfs.btrfs", "-q", "-m", "single", str(self._image))
            options = "loop,noatime,discard,compress-force=zstd:1"
            _call("mount", "-t", "btrfs", "-o", options, str(self._image), str(self.path))
        except BaseException:
            self._remove()
            raise
        return self.path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def stored_bytes(self) -> int:
        """Bytes of the disk that the volume takes."""
        return self._image.stat().st_blocks * 512

    def _remove(self) -> None:
        for _ in range(50):
            if not self.path.is_mount():
                break
            result = subprocess.run(["umount", self.path], check=False, capture_output=True)
            if result.returncode != 0:  # the last process is not quite gone
                time.sleep(0.2)
        else:
            raise OSError(f"'{self.path}' cannot be unmounted: unmount it, then remove its image")
        if self.path.is_dir():
            self.path.rmdir()
        self._image.unlink(missing_ok=True)


def _call(*command: str) -> None:
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        words = result.stderr.strip().splitlines()
        raise OSError(f"'{command[0]}' failed: {words[-1] if words else result.returncode}")
