"""Resolves model references to local directories: given paths, search folders, cache, download."""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import field
from pathlib import Path
from typing import Any

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.base.suggest import nearest
from mergeloom.engine.storage.folder import LocalFolder, local
from mergeloom.planners.config.model_reference import Location, ModelReference, interpretations
from mergeloom.planners.config.weight_names import SUFFIXES
from mergeloom.planners.models.adapter import CONFIG as ADAPTER_CONFIG
from mergeloom.planners.models.adapter import has_adapter
from mergeloom.planners.models.checkpoint import is_complete
from mergeloom.planners.models.gguf.folder import is_gguf

_WANTED_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.model",
    "*.txt",
    "*.jinja",
    "LICENSE*",
    "NOTICE*",
    "*.tiktoken",
    "[0-9]_*/pytorch_model.bin",
)
_LONGEST_ID = 96
"""Characters of a name on the hub, with its owner."""
_HUB_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?")
_PICKLED_FILES = ("*.bin", "*.bin.index.json")
"""Downloaded only if there is nothing else."""
_UNWANTED_FILES = ("consolidated*", "openvino*", "onnx*", "[!0-9a]*/*", "a[!d]*/*")
"""Only folders of a sentence-transformers model (``2_Dense``) and ``additional_chat_templates`` are
downloaded: they begin with a digit, or with ``ad``."""


class FoundIn(enum.Enum):
    """Where the directory of a model was found."""

    GIVEN = "given"
    """In a directory that was given for this model."""
    PATH = "path"
    """At the path that the reference is."""
    SEARCH = "search"
    """In a search folder."""
    HUB = "hub"
    """In the hub cache, possibly after a download."""


@dataclass(frozen=True, slots=True)
class FoundModel:
    """The directory (or file) of a model, and how it was found."""

    directory: Path
    origin: FoundIn

    @property
    def is_downloaded(self) -> bool:
        """Whether the hub's library has downloaded it there."""
        return _is_model_path(self.directory / ".cache" / "huggingface")


def is_model(directory: Path) -> bool:
    """Whether a directory contains a complete model, or an adapter that names its model."""
    return is_complete(directory) or has_adapter_at(directory)


def has_adapter_at(directory: Path) -> bool:
    """Whether a directory contains an adapter with its weights."""
    return has_adapter(LocalFolder(directory))


@dataclass(frozen=True)
class Resolver:
    """Finds models.

    ``model_dirs`` maps references, as written in the configuration, to directories; ``search`` are
    folders of models; ``relative_to`` is a base for relative paths in addition to the working
    directory. ``download`` is called with a model's id before it is downloaded; without it nothing
    is downloaded.
    """

    model_dirs: Mapping[str, Path] = field(default_factory=dict)
    search: Sequence[Path] = ()
    relative_to: Path | None = None
    download: Callable[[str], None] | None = None

    def find(self, location: Location, complete: Callable[[Path], bool] = is_model) -> FoundModel:
        """Find the directory of a model, or of whatever ``complete`` accepts.

        Raises:
            CheckpointError: it is not found, or cannot be downloaded.
        """
        found = self.find_offline(location, complete)
        if found is not None:
            return found
        assert self.download is not None
        self.download(str(location))
        return FoundModel(_download(location, self._remedy(location), complete), FoundIn.HUB)

    def find_offline(
        self, location: Location, complete: Callable[[Path], bool] = is_model
    ) -> FoundModel | None:
        """As `find`; ``None`` for a hub id that must be downloaded.

        Raises:
            CheckpointError: it is not found, and cannot be downloaded.
        """
        given = self._given(location)
        if given is not None:
            if not _is_model_path(given):
                raise CheckpointError(
                    f"'{given}', given for '{location}', is not a directory",
                    remedy="give the directory of the model",
                )
            return FoundModel(given, FoundIn.GIVEN)
        local = self._find_locally(location)
        if local is not None:
            return local
        not_found = self._not_found_error(location)
        if not_found is not None:
            raise not_found
        cached = _cached(location, complete)
        if cached is not None:
            return FoundModel(cached, FoundIn.HUB)
        if _is_offline() or self.download is None:
            why = "HF_HUB_OFFLINE is set" if _is_offline() else "downloads are off"
            raise CheckpointError(
                f"'{location}' is not a directory, the hub's cache has no complete copy of it, and "
                f"{why}",
                remedy=self._remedy(location),
            )
        return None

    def check(self, reference: ModelReference, stages: Set[str] = frozenset()) -> None:
        """Check that a model can exist, without network access; ``stages`` are names that it may be
        a misspelling of.

        Raises:
            CheckpointError: it is missing for certain.
        """
        reading = self.interpret(reference)
        place = reading.model
        near = self.misspelt(reference, stages)
        if near is not None:
            raise CheckpointError(
                f"there is no stage or directory '{place}'", remedy=f"did you mean '{near}'?"
            )
        try:
            self.find_offline(place)
        except CheckpointError as error:
            raise with_stages(error, place, stages) from error
        if reading.adapter is not None:
            self.find_offline(reading.adapter, has_adapter_at)

    def misspelt(self, reference: ModelReference, names: Iterable[str]) -> str | None:
        """Which of ``names`` is meant by a reference that is similar to it, has no owner, and is
        not a directory."""
        place = self.interpret(reference).model
        near = None if "/" in place.path or place.revision else nearest(place.path, names)
        is_there = self._given(place) is not None or self._find_locally(place) is not None
        return None if is_there else near

    def weights(self, text: str, stages: Set[str] = frozenset()) -> Path:
        """A weight file, or a directory with weight files; ``text`` is its path, which may contain
        any characters. ``stages`` are names that it may be a misspelling of.

        Raises:
            CheckpointError: it is not found.
        """
        given = self.model_dirs.get(text)
        if given is not None:
            return given
        location = Location(text)
        for candidate, _ in self._local_candidates(location):
            if _is_file(candidate) or _is_model_path(candidate):
                return candidate
        _, plus, adapter = text.rpartition("+")
        file = Path(os.path.expanduser(adapter))
        if plus and _is_file(file):
            beside = (file.parent / ADAPTER_CONFIG).exists()
            raise CheckpointError(
                f"'{adapter}' is a file, and an adapter is a directory with {ADAPTER_CONFIG}",
                remedy="give the directory that it is in"
                if beside
                else "convert it to peft's format first",
            )
        path = Path(os.path.expanduser(text))
        names = {name: name for name in stages}
        with contextlib.suppress(OSError):
            names |= {each.name: str(path.parent / each.name) for each in path.parent.iterdir()}
        found = nearest(path.name, names)
        near = names[found] if found is not None else None
        raise CheckpointError(
            f"there is no {'stage, ' if stages else ''}file or directory '{text}'",
            remedy=f"did you mean '{near}'?" if near else "",
        )

    def directory(self, location: Location) -> Path:
        """The directory of a model.

        Raises:
            CheckpointError: it is not found, or cannot be downloaded.
        """
        return self.find(location).directory

    def interpret(self, reference: ModelReference) -> ModelReference:
        """The intended meaning of a reference: an existing directory is recognised even if its name
        contains ``@`` or ``+``; revision and adapter follow it."""
        for reading in interpretations(reference):
            model = Location(reading.model.path)
            if str(model) in self.model_dirs or self._find_locally(model) is not None:
                return reading
        return reference

    def _find_locally(self, location: Location) -> FoundModel | None:
        """The first place of that name with a model in it, or else the first place."""
        found = self._places(location)
        if len(found) > 1:
            return next((each for each in found if is_model(each.directory)), found[0])
        return found[0] if found else None

    def others(self, location: Location) -> tuple[Path, ...]:
        """Other models that a path can mean, relative to the working directory or to
        ``relative_to``."""
        taken = self._find_locally(location)
        if taken is None or taken.origin is not FoundIn.PATH or self._given(location) is not None:
            return ()
        here = os.path.realpath(taken.directory)
        paths = (each.directory for each in self._places(location) if each.origin is FoundIn.PATH)
        return tuple(p for p in paths if os.path.realpath(p) != here and is_model(p))

    def _given(self, location: Location) -> Path | None:
        return self.model_dirs.get(str(location), self.model_dirs.get(location.path))

    def _places(self, location: Location) -> list[FoundModel]:
        return [
            FoundModel(candidate, origin)
            for candidate, origin in self._local_candidates(location)
            if _is_model_path(candidate)
        ]

    def _local_candidates(self, location: Location) -> Iterator[tuple[Path, FoundIn]]:
        path = Path(os.path.expanduser(location.path))
        yield path, FoundIn.PATH
        if self.relative_to is not None and not path.is_absolute():
            yield self.relative_to / path, FoundIn.PATH
        if not path.is_absolute() and ".." not in path.parts:
            for folder in self.search:
                whole = str(path)
                names = (whole, path.name, whole.replace("/", "--"), whole.replace("/", "_"))
                for name in names:
                    yield folder / name, FoundIn.SEARCH

    def _not_found_error(self, location: Location) -> CheckpointError | None:
        """The error for a path that is neither a directory nor a hub id."""
        if any(_is_file(path) for path, _ in self._local_candidates(location)):
            return CheckpointError(
                f"'{location.path}' is a file, and a model is a directory",
                remedy="give the directory with config.json; single weight files can be merged if "
                f"their names end in {', '.join(SUFFIXES)}",
            )
        if is_hub_id(location.path):
            return None
        near = self._near(location)
        remedy = f"did you mean '{near}'?" if near else ""
        if "$" in location.path:
            remedy = "environment variables are not replaced in configurations, write the path"
        return CheckpointError(
            f"'{location.path}' is neither a directory nor a hub id (owner/name)", remedy=remedy
        )

    def _near(self, location: Location) -> Path | None:
        """A directory beside the one that a path names, with a similar name."""
        path = Path(os.path.expanduser(location.path))
        for folder in (
            path.parent,
            *([self.relative_to / path.parent] if self.relative_to else ()),
        ):
            try:
                near = nearest(path.name, (p.name for p in folder.iterdir() if p.is_dir()))
            except OSError:
                continue
            if near:
                return path.parent / near
        return None

    def _remedy(self, location: Location) -> str:
        """The remedy for a hub id that cannot be downloaded."""
        where = f"give its directory by --model-dir {location.path}=PATH"
        near = self._near(location)
        return f"write '{near}' if you mean that directory, or {where}" if near else where


def with_stages(error: CheckpointError, location: Location, stages: Set[str]) -> CheckpointError:
    """The error for a model that is not found, naming the stages where one of them may be meant."""
    if not stages or "/" in location.path or location.revision:
        return error
    names = ", ".join(f"'{name}'" for name in sorted(stages))
    return CheckpointError(error.cause, remedy=f"the stages here are {names}; {error.remedy}")


def is_hub_id(path: str) -> bool:
    """Whether ``path`` can be ``owner/name`` or ``name`` on the hub."""
    parts = path.split("/")
    return (
        len(parts) <= 2
        and len(path) <= _LONGEST_ID
        and not any(pair in path for pair in ("--", ".."))
        and all(_HUB_NAME.fullmatch(part) for part in parts)
    )


def _is_model_path(path: Path) -> bool:
    """Whether a path is a directory, or a file that is a whole model."""
    try:
        return path.is_dir() or is_gguf(local(path))
    except OSError:  # the name is too long, or access is denied
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _is_offline() -> bool:
    flags = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(flag, "").upper() in {"1", "ON", "YES", "TRUE"} for flag in flags)


def _cache_folder() -> Path:
    """The cache directory of the hub's library, without importing it (which takes a second)."""
    for key, suffix in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if os.environ.get(key):
            return Path(os.environ[key]).expanduser() / suffix
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "huggingface" / "hub"


def _cached(location: Location, complete: Callable[[Path], bool]) -> Path | None:
    """A complete snapshot in the cache; incomplete ones are ignored.

    Layout of the cache: ``models--OWNER--NAME/refs/REVISION`` holds the commit's hash, and
    ``snapshots/HASH`` the files as links into ``blobs``.
    """
    model = _cache_folder() / ("models--" + location.path.replace("/", "--"))
    revision = location.revision or "main"
    if any(part in {"", ".", ".."} for part in revision.split("/")):
        return None
    reference = model / "refs" / revision
    try:
        commit = reference.read_text().strip() if reference.is_file() else revision
        snapshot = model / "snapshots" / commit
        single_name = "/" not in commit and commit not in {"", ".", ".."}
        return snapshot if single_name and complete(snapshot) else None
    except (OSError, ValueError):
        return None


def _download(location: Location, where: str, complete: Callable[[Path], bool]) -> Path:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    def failed(reason: str, first: str = "") -> CheckpointError:
        remedy = f"{first}; or {where}" if first else where
        return CheckpointError(f"cannot fetch '{location}': {reason}", remedy=remedy)

    try:
        for wanted in (_WANTED_FILES, (*_WANTED_FILES, *_PICKLED_FILES)):
            directory: Any = snapshot_download(
                location.path,
                revision=location.revision,
                cache_dir=_cache_folder(),
                allow_patterns=list(wanted),
                ignore_patterns=list(_UNWANTED_FILES),
            )
            if complete(Path(directory)):
                break
    except hub.GatedRepoError as error:
        raise failed(
            "it is gated", "accept its terms on the hub and log in (hf auth login)"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise failed(f"it has no revision '{location.revision or 'main'}'") from error
    except hub.RepositoryNotFoundError as error:
        raise failed(
            "the hub has no such model, or it is private", "log in (hf auth login)"
        ) from error
    except Exception as error:  # the libraries raise many types of errors when the network fails
        raise failed(*_download_failure(error)) from error
    return Path(directory)


_DISK_ERRORS = (errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EPERM, errno.EROFS)
_UNREACHABLE = ("TransportError", "ConnectionError", "OfflineModeIsEnabled")
"""Names of base classes of errors of the libraries for connections that fail."""


def _download_failure(error: Exception) -> tuple[str, str]:
    """Why a download failed, and what to do, if that is known."""
    from huggingface_hub import constants

    chain: list[BaseException] = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(below)
    last = str(chain[-1]).strip() or type(chain[-1]).__name__
    for each in chain:
        if isinstance(each, OSError) and each.errno in _DISK_ERRORS:
            return (
                f"the hub's cache '{_cache_folder()}' cannot be written: {each.strerror}",
                "name another folder by HF_HUB_CACHE",
            )
        if any(kind.__name__ in _UNREACHABLE for kind in type(each).__mro__):
            reason = re.sub(r"^\[Errno -?\d+\] ", "", last).splitlines()[0]
            return (
                f"the hub ({constants.ENDPOINT}) cannot be reached: {reason}",
                "check the network, or the proxy named by HTTPS_PROXY",
            )
        status = getattr(getattr(each, "response", None), "status_code", None)
        if status is not None:
            advice = {401: "log in (hf auth login)", 403: "log in (hf auth login)"}
            return f"the hub answers with status {status}", advice.get(status, "try again later")
    return f"the hub gives no usable answer ({str(error).strip().splitlines()[0] or last})", ""
