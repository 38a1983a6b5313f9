"""Removal of caches and of the remains of interrupted merges."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from mergeloom.engine.base.errors import OutputError
from mergeloom.engine.hardware.profile import cache_directory
from mergeloom.engine.output.directory import OutputDirectory
from mergeloom.engine.output.manifest import DIRECTORY
from mergeloom.engine.output.state import Condition, examine
from mergeloom.methods.ops.arithmetic import LIBRARY
from mergeloom.report.output_records import Cleaned, CleanReport

_CACHES = {
    "loops": "machine code of other versions or processors",
    "profile.json": "the memory of libraries and the time of merges on this machine",
}


def clean(
    outputs: Sequence[Path] = (), everything: bool = False, dry_run: bool = False
) -> CleanReport:
    """Remove machine code not used by this version (with ``everything``, all caches), and
    interrupted merges in ``outputs``. A dry run removes nothing.

    Raises:
        OutputError: an output is finished, or was not made by this program.
        RunError: a merge is running there, or removal fails.
    """
    for output in outputs:
        _check_interrupted(output)
    found = [*_caches(everything), *map(_interrupted_output, outputs)]
    if not dry_run:
        for output in outputs:
            _clear_output(output)
        for item in found[: len(found) - len(outputs)]:
            _remove_cache(Path(item.path))
    return CleanReport(
        removed=not dry_run, found=tuple(found), bytes=sum(item.bytes for item in found)
    )


def _caches(everything: bool) -> Iterator[Cleaned]:
    try:
        cache = cache_directory()
    except RuntimeError:  # there is no home directory, and so no cache
        return
    loops = cache / "loops"
    used = LIBRARY.directory
    for path in sorted(loops.iterdir()) if loops.is_dir() else ():
        if path == used and not everything:
            continue
        what = "machine code of this version" if path == used else _CACHES["loops"]
        yield Cleaned(str(path), what, disk_usage(path))
    profile = cache / "profile.json"
    if everything and profile.is_file():
        yield Cleaned(str(profile), _CACHES["profile.json"], disk_usage(profile))


def _check_interrupted(output: Path) -> None:
    found = examine(output)
    if found.condition in (Condition.FINISHED, Condition.INCOMPLETE):
        raise OutputError(
            f"'{output}' is a finished merge, which 'clean' does not remove",
            remedy="delete the directory yourself if you no longer need it",
        )
    if found.condition not in (Condition.INTERRUPTED, Condition.DAMAGED):
        raise OutputError(
            f"'{output}' is not an interrupted merge: there is nothing to clean",
            remedy="give the output directory of an interrupted merge",
        )


def _interrupted_output(output: Path) -> Cleaned:
    return Cleaned(str(output), "the finished part of an interrupted merge", disk_usage(output))


def _clear_output(output: Path) -> None:
    with OutputDirectory(output) as directory:
        directory.clear()
    shutil.rmtree(output / DIRECTORY, ignore_errors=True)
    if not any(output.iterdir()):
        output.rmdir()


def _remove_cache(path: Path) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise OutputError(f"cannot remove '{path}': {error.strerror}") from error


def disk_usage(path: Path) -> int:
    """The disk usage, in bytes, of a file or of all files below a directory."""
    total = 0
    one_file: list[tuple[str, list[str], list[str]]] = [(str(path.parent), [], [path.name])]
    for folder, _, names in os.walk(path) if path.is_dir() else one_file:
        for name in names:
            status = os.lstat(os.path.join(folder, name))
            if stat.S_ISREG(status.st_mode):
                blocks = getattr(status, "st_blocks", None)  # not available on Windows
                total += status.st_size if blocks is None else blocks * 512
    return total
