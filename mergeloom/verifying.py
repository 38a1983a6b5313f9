"""``mergeloom verify``: the bytes of an output against the digests recorded for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from engine.errors import LoomError, OutputError
from engine.manifest import DIRECTORY, read_manifest
from engine.safetensors import read_header
from engine.verification import verify_tensors
from mergeloom.sizes import data


@dataclass(frozen=True)
class Verified:
    """What was checked and what is wrong, as (what, why)."""

    output: Path
    tensors: int
    nbytes: int
    wrong: tuple[tuple[str, str], ...]

    @property
    def is_sound(self) -> bool:
        return not self.wrong


def verify_output(output: Path) -> Verified:
    """Check every tensor of a finished merge against its digest, and that all files are there.

    Raises:
        OutputError: nothing finished is there to verify.
    """
    manifest = read_manifest(output)
    if manifest is None:
        if (output / DIRECTORY).is_dir():
            raise OutputError(
                f"'{output}' is not finished: run the same merge again, which verifies what is "
                "there and continues"
            )
        raise OutputError(f"'{output}' was not made by mergeloom: it has no manifest")
    wrong: list[tuple[str, str]] = []
    absent = set()
    for name, size in manifest.files.items():
        path = output / name
        if not path.is_file():
            wrong.append((name, "the shard is missing"))
            absent.add(name)
        elif path.stat().st_size != size:
            wrong.append((name, f"it has {path.stat().st_size} bytes, {size} were written"))
        else:
            wrong += _check_header(path, manifest.tensors)
    wrong += [
        (name, "the file is missing")
        for name in manifest.side_files
        if not (output / name).is_file()
    ]
    places = [
        (output / record.file, record) for record in manifest.tensors if record.file not in absent
    ]
    wrong += [(record.name, reason) for record, reason in verify_tensors(places)]
    nbytes = sum(record.nbytes for record in manifest.tensors)
    return Verified(output, len(manifest.tensors), nbytes, tuple(wrong))


def document(found: Verified) -> dict[str, Any]:
    """What ``mergeloom verify --json`` prints."""
    return {
        "output": str(found.output),
        "sound": found.is_sound,
        "tensors": found.tensors,
        "bytes": found.nbytes,
        "wrong": [{"what": what, "why": why} for what, why in found.wrong],
    }


def render(found: Verified) -> RenderableType:
    """The result in words."""
    if found.is_sound:
        tensors = f"{found.tensors} tensors, {data(found.nbytes)}"
        return Text(f"'{found.output}' is sound: {tensors} equal their digests", style="green")
    lines = [Text(f"{what}: {why}", style="red") for what, why in found.wrong]
    return Group(*lines, Text(f"'{found.output}' has {len(found.wrong)} faults", style="bold"))


def _check_header(path: Path, records: tuple[Any, ...]) -> list[tuple[str, str]]:
    """Whether the file's header places the tensors where they were written."""
    try:
        entries = read_header(path).entries
    except LoomError as error:
        return [(path.name, str(error))]
    expected = {r.name: (r.offset, r.offset + r.nbytes) for r in records if r.file == path.name}
    found = {name: (entry.start, entry.stop) for name, entry in entries.items()}
    return [] if expected == found else [(path.name, "its header places tensors elsewhere")]
