"""Verification of an output: its files and tensors against recorded digests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mergeloom.engine.base.errors import LoomError, OutputError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.output.journal import JournalContent, read_journal
from mergeloom.engine.output.manifest import (
    DIRECTORY,
    FileRecord,
    Manifest,
    TensorRecord,
    is_inside,
    is_valid_block,
    read_manifest,
)
from mergeloom.engine.output.shard_files import name_in_header, partial_path
from mergeloom.engine.output.verify_tensors import verify_tensors
from mergeloom.engine.storage.digest import PIECE_BYTES, digest_of, file_pieces
from mergeloom.engine.storage.files import FileSource
from mergeloom.engine.storage.safetensors import Entry, read_header

Fault = tuple[str, str]
"""The name of a file or tensor, and what is wrong with it."""

_WEIGHT_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.safetensors.partial",
    "*.bin",
    "*.pt",
)


@dataclass(frozen=True)
class Verification:
    """The result of a verification; for an interrupted merge, of the tensors recorded so far."""

    output: Path
    finished: bool
    tensors: int
    nbytes: int
    wrong: tuple[Fault, ...]

    @property
    def is_sound(self) -> bool:
        return not self.wrong


def verify_output(output: Path) -> Verification:
    """Check every file and tensor of a finished merge against its digest, and that there are no
    other weight files; or the recorded tensors of an interrupted merge.

    Raises:
        OutputError: there is nothing to verify, or the records are damaged.
    """
    manifest = read_manifest(output)
    if manifest is not None:
        records = manifest.tensors
        wrong = [*recorded_faults(output, manifest), *_foreign_weights(output, manifest)]
    else:
        if not (output / DIRECTORY).is_dir():
            why = "was not made by mergeloom: it has no manifest"
            raise OutputError(
                f"'{output}' {why if output.exists() else 'does not exist'}",
                remedy="name a directory that 'mergeloom merge' wrote into",
            )
        journal = read_journal(output / DIRECTORY / "journal")
        if journal is None:
            raise OutputError(
                f"'{output}' holds a merge that has not recorded any tensor yet",
                remedy="the same merge again continues it",
            )
        places, wrong = _recorded_tensors(output, journal)
        records = tuple(record for _, record in places)
        wrong += [(record.name, reason) for record, reason in verify_tensors(places)]
    nbytes = sum(record.nbytes for record in records)
    return Verification(output, manifest is not None, len(records), nbytes, tuple(wrong))


def recorded_faults(output: Path, manifest: Manifest) -> Iterator[Fault]:
    """The files and tensors of a finished merge that differ from its records; reads all."""
    yield from _file_faults(output, manifest)
    records = manifest.tensors
    places = [(output / r.file, r) for r in records if (output / r.file).is_file()]
    yield from ((record.name, reason) for record, reason in verify_tensors(places))


def _file_faults(output: Path, manifest: Manifest) -> Iterator[Fault]:
    for name, file in manifest.files.items():
        path = output / name
        if not path.is_file():
            yield name, "the shard is missing"
        elif path.stat().st_size != file.size:
            yield name, f"it has {path.stat().st_size} bytes, {file.size} were written"
        else:
            yield from _header_faults(path, name, file, manifest.tensors)
    for name, digest in manifest.side_files.items():
        try:
            if digest_of(file_pieces(output / name)) != digest:
                yield name, "its bytes differ from its digest"
        except FileNotFoundError:
            yield name, "the file is missing"
        except OSError as error:
            yield name, f"it cannot be read: {error.strerror}"


def _foreign_weights(output: Path, manifest: Manifest) -> Iterator[Fault]:
    """Weight files that this merge did not write."""
    known = {*manifest.files, *manifest.side_files}
    for path in sorted({found for pattern in _WEIGHT_FILES for found in output.glob(pattern)}):
        if path.name not in known:
            yield path.name, "this merge did not write it: weights of another run"


def _header_faults(
    path: Path, name: str, file: FileRecord, records: tuple[TensorRecord, ...]
) -> Iterator[Fault]:
    """Faults in a shard's header: changed bytes, or other tensor positions than recorded."""
    try:
        if digest_of(_first_bytes(path, file.header_bytes)) != file.header_digest:
            yield name, "its header differs from its digest"
            return
        entries = read_header(FileSource.at(path)).entries
    except OSError as error:
        yield name, f"it cannot be read: {error.strerror}"
        return
    except LoomError as error:
        yield name, str(error)
        return
    # A record covers one header entry, or several contiguous ones under the name of the first.
    own = [record for record in records if record.file == name]
    starts = {each: entry.start for each, entry in entries.items()}
    stops = {entry.stop for entry in entries.values()}
    placed = all(
        starts.get(name_in_header(name, record.name)) == record.offset
        and record.offset + record.nbytes in stops
        for record in own
    )
    covered = sum(entry.stop - entry.start for entry in entries.values())
    if not placed or covered != sum(record.nbytes for record in own):
        yield name, "its header places tensors elsewhere"


def _first_bytes(path: Path, count: int) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while count > 0 and (piece := file.read(min(count, PIECE_BYTES))):
            yield piece
            count -= len(piece)


def _recorded_tensors(
    output: Path, journal: JournalContent
) -> tuple[list[tuple[Path, TensorRecord]], list[Fault]]:
    """Locations of the tensors in a journal, from the headers of their shards, and faults."""
    wrong: list[Fault] = []
    if journal.damaged:
        wrong.append(("journal", f"{journal.damaged} of its records are damaged"))
    shards: dict[str, tuple[Path, dict[str, Entry]]] = {}
    for name in filter(is_inside, dict.fromkeys(entry.file for entry in journal.finished)):
        path = output / name
        path = path if path.exists() else partial_path(path)
        try:
            shards[name] = path, dict(read_header(FileSource.at(path)).entries)
        except LoomError as error:
            wrong.append((name, str(error)))
    places = {}
    for entry in journal.finished:
        if not entry.digest:  # a clone, which will be cloned again
            continue
        path, entries = shards.get(entry.file, (output, {}))
        found = entries.get(name_in_header(entry.file, entry.tensor))
        if found is not None:
            offset, nbytes = found.start, entry.nbytes or found.stop - found.start
            if not is_valid_block(entry.block_bytes, nbytes):
                wrong.append((entry.tensor, "its record is not valid"))
                continue
            record = TensorRecord(
                entry.tensor, entry.file, offset, nbytes, entry.digest, entry.block_bytes
            )
            places[entry.file, entry.tensor] = path, record
        elif entries:
            wrong.append((entry.tensor, f"the header of {entry.file[:80]!r} lacks it"))
    return [*places.values()], wrong
