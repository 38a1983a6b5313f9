"""The state of an output directory, determined without changing anything."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from pathlib import Path

from mergeloom.engine.base.errors import OutputError, read_remedy
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.output.journal import JournalContent, Totals, read_journal
from mergeloom.engine.output.lock import is_held
from mergeloom.engine.output.manifest import DIRECTORY, Manifest, read_manifest
from mergeloom.engine.output.side_files import DIGEST
from mergeloom.engine.storage.files import MODIFIED


class Condition(str, enum.Enum):
    """The condition of an output path."""

    ABSENT = "absent"
    EMPTY = "empty"
    FILE = "file"
    UNREADABLE = "unreadable"
    FOREIGN = "foreign"
    """Not empty, and not made by this program."""
    DAMAGED = "damaged"
    """Its records are damaged."""
    INTERRUPTED = "interrupted"
    INCOMPLETE = "incomplete"
    """It was finished, but files have been removed or truncated since."""
    FINISHED = "finished"


@dataclass(frozen=True)
class OutputState:
    """The state of an output directory.

    ``fingerprint`` and ``identity`` are those of the merge that was run there, if any;
    ``finished`` is the number of recorded tensors, ``finished_bytes`` their size in bytes, and
    ``totals`` those of the whole run, if known. ``running`` says that a process is writing to it.
    ``faults`` lists the faults of an incomplete output, ``reason`` is why one is unreadable or
    damaged, ``remedy`` what to do then.
    """

    path: Path
    condition: Condition
    fingerprint: str | None = None
    identity: Mapping[str, str] = field(default_factory=dict)
    finished: int = 0
    faults: tuple[str, ...] = ()
    reason: str = ""
    remedy: str = ""
    running: bool = False
    finished_bytes: int = 0
    totals: Totals | None = None


@dataclass(frozen=True)
class Difference:
    """A difference between the merge recorded in a directory and the current one.

    ``what`` names the compared value; ``recorded`` and ``current`` are ``None`` if absent.
    """

    what: str
    recorded: str | None
    current: str | None

    @property
    def group(self) -> str:
        """The group of the difference, such as the configuration."""
        return self.what.partition(": ")[0]

    @property
    def is_readable(self) -> bool:
        """Whether the values are readable."""
        return _shown(self.recorded) is not None and _shown(self.current) is not None

    def __str__(self) -> str:
        if not self.is_readable:
            return self.what
        return f"{self.what} (was {_shown(self.recorded)}, is {_shown(self.current)})"


_MAX_SHOWN = 60


def examine(path: Path) -> OutputState:
    """The state of ``path``. Contents of shards are not read."""
    occupied = foreign_state(path)
    if occupied is not None:
        return occupied
    running = is_held(
        path / DIRECTORY
    )  # asked before its records are read: the run may end meanwhile
    try:
        manifest = read_manifest(path)
        journal = read_journal(path / DIRECTORY / "journal") if manifest is None else None
    except OutputError as error:
        why, remedy = error.cause, error.remedy
        return OutputState(path, Condition.DAMAGED, reason=why, remedy=remedy, running=running)
    return replace(_recorded(path, manifest, journal), running=running)


def foreign_state(path: Path) -> OutputState | None:
    """The state of a path that is not an output of this program; ``None`` if it is one."""
    try:
        entries = set(os.listdir(path))
    except FileNotFoundError:
        return OutputState(path, Condition.ABSENT)
    except NotADirectoryError:
        return OutputState(path, Condition.FILE)
    except OSError as error:
        why = error.strerror or str(error)
        return OutputState(path, Condition.UNREADABLE, reason=why, remedy=read_remedy(error))
    if not entries:
        return OutputState(path, Condition.EMPTY)
    if DIRECTORY not in entries or not (path / DIRECTORY).is_dir():
        return OutputState(path, Condition.FOREIGN)
    return None


def _recorded(path: Path, manifest: Manifest | None, journal: JournalContent | None) -> OutputState:
    if manifest is not None:
        faults = tuple(missing_files(path, manifest))
        return OutputState(
            path,
            Condition.INCOMPLETE if faults else Condition.FINISHED,
            manifest.fingerprint,
            manifest.identity,
            len(manifest.tensors),
            faults,
            finished_bytes=(nbytes := sum(record.nbytes for record in manifest.tensors)),
            totals=Totals(len(manifest.tensors), nbytes),
        )
    if journal is None:
        return OutputState(path, Condition.INTERRUPTED)
    return OutputState(
        path,
        Condition.INTERRUPTED,
        journal.fingerprint,
        journal.identity,
        len(finished := {(entry.file, entry.tensor): entry.nbytes for entry in journal.finished}),
        finished_bytes=sum(finished.values()),
        totals=journal.totals,
    )


def missing_files(path: Path, manifest: Manifest) -> Iterator[str]:
    """The faults of a finished output: missing or truncated shards, and missing side files.

    A changed side file is not a fault, because people edit model cards and configurations.
    """
    for name, file in manifest.files.items():
        try:
            size = (path / name).stat().st_size
        except FileNotFoundError:
            yield f"'{name}' is missing"
        except OSError as error:
            yield f"'{name}' cannot be read ({error.strerror})"
        else:
            if size != file.size:
                yield f"'{name}' has {size:,} bytes, {file.size:,} were written"
    for name in manifest.side_files:
        if not (path / name).exists():
            yield f"'{name}' is missing"


def differences(recorded: Mapping[str, str], current: Mapping[str, str]) -> tuple[Difference, ...]:
    """The differences between the identities of a recorded merge and the current one."""
    return tuple(
        Difference(key, recorded.get(key), current.get(key))
        for key in dict.fromkeys([*recorded, *current])
        if recorded.get(key) != current.get(key)
    )


def only_times_differ(found: tuple[Difference, ...]) -> bool:
    """Whether two merges differ only in modification times of their inputs."""

    def without_time(value: str | None) -> str | None:
        text, mark, _ = (value or "").rpartition(MODIFIED)
        return text if mark else None

    return bool(found) and all(
        without_time(each.recorded) is not None
        and without_time(each.recorded) == without_time(each.current)
        for each in found
    )


def describe_differences(found: tuple[Difference, ...], max_shown: int = 3) -> str:
    """Differences as one line of text; at most ``max_shown`` of them."""
    if not found:
        return "how it is computed (another version of this program)"
    found = tuple(each for each in found if not only_times_differ((each,))) or found
    groups = {each.group for each in found if each.is_readable}
    shown = [each for each in found if each.is_readable or each.group not in groups]
    more = f"; and {len(shown) - max_shown} more" if len(shown) > max_shown else ""
    return "; ".join(map(str, shown[:max_shown])) + more


def _shown(value: str | None) -> str | None:
    if value is None:
        return "nothing"
    if value.startswith(DIGEST) or not value.isprintable():
        return None
    value = value.partition(MODIFIED)[0]  # nanoseconds since 1970 are not readable
    return value if len(value) <= _MAX_SHOWN else f"{value[: _MAX_SHOWN - 3]}..."
