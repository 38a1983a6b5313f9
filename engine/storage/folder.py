"""Folders of checkpoints, local or remote: file names, contents of small files, and sources.

Only `LocalFolder` and `LocalFile` know paths. Other kinds of folders (remote, in an archive) are
further classes with the same methods, which pass the same tests.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from mergeloom.engine.base.errors import CheckpointError, unreadable
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.storage.files import FileSource
from mergeloom.engine.storage.source import Source


class Folder(Protocol):
    """A folder of files; names are relative, with ``/`` between their parts."""

    @property
    def name(self) -> str:
        """The name for messages."""
        ...

    @property
    def identity(self) -> str:
        """An identifier that is equal for the same folder, whichever name was used."""
        ...

    def names(self) -> Sequence[str]:
        """The names of the files directly in the folder, sorted.

        Raises:
            CheckpointError: the folder cannot be read.
        """
        ...

    def folders(self) -> Sequence[str]:
        """The names of the subfolders, sorted, without links; empty if they cannot be read."""
        ...

    def folder(self, name: str) -> Folder:
        """The subfolder ``name``, one of `folders`."""
        ...

    def has(self, name: str) -> bool:
        """Whether the folder has a file ``name``."""
        ...

    def read(self, name: str, max_bytes: int) -> bytes:
        """The content of a file of at most ``max_bytes`` bytes.

        Raises:
            CheckpointError: the file is missing, too large, unreadable, or a link that leads
                outside the folder.
        """
        ...

    def source(self, name: str) -> Source:
        """The source of a file.

        Raises:
            CheckpointError: the file is missing, or a link that leads outside the folder.
        """
        ...


def walk(folder: Folder, within: str = "") -> Iterator[str]:
    """The names of all files in a folder and then in its subfolders, each sorted.

    Names are relative to the folder and prefixed by ``within``.
    """
    yield from (within + name for name in folder.names())
    for name in folder.folders():
        yield from walk(folder.folder(name), f"{within}{name}/")


@contextmanager
def local_copy(folder: Folder, max_bytes: int) -> Iterator[str]:
    """A local directory with the files of a folder of at most ``max_bytes`` bytes, for libraries
    that need paths: the folder's own directory if it is local, else a temporary copy.

    Raises:
        CheckpointError: a file cannot be read, or is a link that leads outside the folder.
    """
    if isinstance(folder, LocalFolder):
        for name in folder.names():
            folder.source(name)  # raises for links that lead outside
        yield folder.name
        return
    with tempfile.TemporaryDirectory(prefix="mergeloom-") as made:
        for name in folder.names():
            if folder.source(name).size <= max_bytes:
                Path(made, name).write_bytes(folder.read(name, max_bytes))
        yield made


@dataclass(frozen=True, slots=True)
class _Local:
    """What has a path."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def identity(self) -> str:
        return str(self.path.resolve())


@dataclass(frozen=True, slots=True)
class LocalFolder(_Local):
    """A local directory.

    If ``confined``, links in it must lead to files inside it or in ``models--NAME/blobs``, as those
    of the hub cache do and those of directories that older versions of its library downloaded to.
    Otherwise links may lead anywhere, for example in a directory of the user's own files.
    """

    confined: bool = True

    @property
    def exists(self) -> bool:
        """Whether there is a directory at its path."""
        return _kind_at(self.path) is LocalFolder

    def names(self) -> Sequence[str]:
        try:
            return sorted(entry.name for entry in self.path.iterdir() if entry.is_file())
        except OSError as error:
            raise unreadable(self.path, error, CheckpointError) from error

    def folders(self) -> Sequence[str]:
        try:
            return sorted(e.name for e in self.path.iterdir() if e.is_dir() and not e.is_symlink())
        except OSError:
            return []

    def folder(self, name: str) -> LocalFolder:
        return LocalFolder(self.path / name, self.confined)

    def has(self, name: str) -> bool:
        try:
            return (self.path / name).is_file()
        except (OSError, ValueError):  # the name is too long or invalid
            return False

    def read(self, name: str, max_bytes: int) -> bytes:
        path = self._checked_path(name)
        try:
            if path.exists() and not path.is_file():  # a pipe would never end
                raise CheckpointError(
                    f"'{path}' is not a file", remedy="replace it by the file itself"
                )
            with open(path, "rb") as file:
                content = file.read(max_bytes + 1)
        except OSError as error:
            raise unreadable(path, error, CheckpointError) from error
        if len(content) > max_bytes:
            raise CheckpointError(
                f"'{path}' is larger than {max_bytes >> 20} MiB",
                remedy="check that it is the right file",
            )
        return content

    def source(self, name: str) -> FileSource:
        return FileSource.at(self._checked_path(name))

    def _checked_path(self, name: str) -> Path:
        if not self.confined:
            return self.path / name
        path = self.path / name
        target = path.resolve()
        folder, model = target.parent.name, target.parent.parent.name
        is_in_cache = folder == "blobs" and model.startswith("models--")
        if not is_in_cache and not target.is_relative_to(self.path.resolve()):
            raise CheckpointError(
                f"'{path}' is a link that leads outside the checkpoint's directory, to '{target}'",
                remedy="a model's files may be published with the output, so they must be its own: "
                "replace the link by the file, or copy the directory with 'cp -rL'",
            )
        return path


@dataclass(frozen=True, slots=True)
class LocalFile(_Local):
    """A local file as a folder that contains only this file.

    It may be a link to anywhere, because the user named it.
    """

    @property
    def parent(self) -> LocalFolder:
        """The directory that contains it."""
        return LocalFolder(self.path.parent)

    def names(self) -> Sequence[str]:
        return [self.path.name]

    def folders(self) -> Sequence[str]:
        return []

    def folder(self, name: str) -> Folder:
        raise AssertionError(f"'{self.path}' is a file, not a folder that contains '{name}'")

    def has(self, name: str) -> bool:
        return name == self.path.name

    def read(self, name: str, max_bytes: int) -> bytes:
        return LocalFolder(self.path.parent, confined=False).read(name, max_bytes)

    def source(self, name: str) -> FileSource:
        return FileSource.at(self.path)


def local(path: Path) -> LocalFolder | LocalFile:
    """The file at ``path``, or else the directory, which may be missing."""
    return LocalFile(path) if _kind_at(path) is LocalFile else LocalFolder(path)


def _kind_at(path: Path) -> type[LocalFolder | LocalFile] | None:
    try:
        if path.is_dir():
            return LocalFolder
        return LocalFile if path.is_file() else None
    except (OSError, ValueError):  # the path is too long or invalid, or access is denied
        return None
