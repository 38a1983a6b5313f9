"""A GGUF file, or its parts, presented as a folder in the format of transformers.

The small files of the folder are generated from the file's metadata.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.errors import COPY_AGAIN, CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.storage.folder import Folder, LocalFile, LocalFolder
from mergeloom.engine.storage.gguf import GgufHeader, GgufTensor, read_gguf
from mergeloom.engine.storage.memory_source import MemorySource
from mergeloom.engine.storage.source import Source, read_part
from mergeloom.engine.storage.source_file import planning_reader

if TYPE_CHECKING:
    from mergeloom.planners.models.gguf.families import Family

SUFFIX = ".gguf"
_PART_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_MAX_FACTORS = 1024
_OTHER_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def is_gguf(place: LocalFolder | LocalFile) -> bool:
    """Whether ``place`` is a GGUF file, or a directory whose weights are all in such files."""
    try:
        return bool(_gguf_files(place))
    except (CheckpointError, ValueError):  # it does not exist, or its path is invalid
        return False


def _gguf_files(place: LocalFolder | LocalFile) -> list[str]:
    """The GGUF file at ``place``, or those in a directory without other weights, except files of a
    vision tower."""
    names = place.names()
    if isinstance(place, LocalFile):
        return [name for name in names if name.endswith(SUFFIX)]
    if any(name.endswith(_OTHER_WEIGHT_SUFFIXES) for name in names):
        return []
    return [n for n in names if n.endswith(SUFFIX) and not n.startswith("mmproj")]


@dataclass(frozen=True, eq=False)
class GgufFolder:
    """The model whose parts are ``files`` of the folder ``inside``."""

    inside: LocalFolder
    files: Mapping[str, tuple[Source, GgufHeader]]

    @staticmethod
    def at(place: LocalFolder | LocalFile) -> GgufFolder:
        """The model in a file or directory for which `is_gguf` is true.

        Raises:
            CheckpointError: it cannot be read, lacks a part, or there are several models.
        """
        folder = place.parent if isinstance(place, LocalFile) else place
        parts = _files_of_model(folder, _gguf_files(place))
        files = {}
        for name in parts:
            source: Source = folder.source(name)
            header = read_gguf(source)
            digest = hashlib.blake2b(header.raw, digest_size=12).hexdigest()
            files[name] = source.identified(digest), header
        return GgufFolder(folder, files)

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def identity(self) -> str:
        return LocalFile(self.path).identity

    @property
    def path(self) -> Path:
        """The path of the file, or of its first part."""
        return self.inside.path / next(iter(self.files))

    @property
    def values(self) -> Mapping[str, Any]:
        """The metadata of the file, or of its first part."""
        return next(iter(self.files.values()))[1].values

    @cached_property
    def tensors(self) -> Mapping[str, GgufTensor]:
        """The tensors of all parts, by GGUF name.

        Raises:
            CheckpointError: a tensor is in two parts.
        """
        found: dict[str, GgufTensor] = {}
        for name, (_, header) in self.files.items():
            repeated = next((tensor for tensor in header.tensors if tensor in found), None)
            if repeated is not None:
                raise CheckpointError(
                    f"'{self.inside.path / name}' repeats the tensor '{repeated}' of an earlier "
                    "part",
                    remedy=COPY_AGAIN,
                )
            found.update(header.tensors)
        return found

    @property
    def stored(self) -> dict[str, StoredTensor]:
        """The locations of the tensors of all parts."""
        return {
            name: StoredTensor.at(source, tensor.offset, tensor.dtype, tensor.shape)
            for source, header in self.files.values()
            for name, tensor in header.tensors.items()
        }

    @cached_property
    def family(self) -> Family:
        from mergeloom.planners.models.gguf.config import family_of_file

        return family_of_file(self.values, self.name)

    @cached_property
    def config(self) -> dict[str, Any]:
        from mergeloom.planners.models.gguf.config import transformers_config

        return transformers_config(
            self.family, self.values, self.tensors, self._rope_factors, self.name
        )

    @cached_property
    def small_files(self) -> Mapping[str, bytes]:
        """The files other than weights, by name.

        Raises:
            CheckpointError: the kind of tokenizer is not supported.
        """
        from mergeloom.planners.models.gguf.config import generation_config
        from mergeloom.planners.models.gguf.tokenizer import tokenizer_files

        documents: dict[str, Any] = {
            "config.json": self.config,
            "generation_config.json": generation_config(self.config, self.values),
        }
        documents |= tokenizer_files(self.family, self.values, self.name)
        return {
            name: json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"
            for name, content in documents.items()
        }

    def names(self) -> Sequence[str]:
        return sorted([*self.small_files, *self.files])

    def folders(self) -> Sequence[str]:
        return []

    def folder(self, name: str) -> Folder:
        raise AssertionError(f"'{self.name}' has no folder '{name}'")

    def has(self, name: str) -> bool:
        return name in self.small_files or name in self.files

    def read(self, name: str, max_bytes: int) -> bytes:
        from mergeloom.planners.models.gguf.families import ORIGINAL

        content = self.small_files[name]
        if len(content) > max_bytes:
            raise CheckpointError(
                f"the '{name}' that '{self.name}' stands for has {len(content)} bytes, more than "
                f"{max_bytes}",
                remedy=ORIGINAL,
            )
        return content

    def source(self, name: str) -> Source:
        if name in self.files:
            return self.files[name][0]
        return MemorySource(self.small_files[name], f"{self.name}/{name}")

    def _rope_factors(self, name: str) -> Sequence[float]:
        """A small tensor of float32 numbers."""
        from mergeloom.planners.models.gguf.families import CONVERT_AGAIN

        for source, header in self.files.values():
            tensor = header.tensors.get(name)
            if tensor is None:
                continue
            count = tensor.shape[0] if len(tensor.shape) == 1 else 0
            if tensor.dtype.code != "F32" or not 0 < count <= _MAX_FACTORS:
                break
            with planning_reader(source) as reader:
                raw = read_part(reader, tensor.offset, tensor.offset + 4 * count)
            return struct.unpack(f"<{count}f", raw)
        raise CheckpointError(
            f"'{self.name}': '{name}' is not a list of factors", remedy=CONVERT_AGAIN
        )


def _files_of_model(folder: LocalFolder, names: Sequence[str]) -> list[str]:
    """The files of one model, in order.

    Raises:
        CheckpointError: some are missing, or they belong to several models.
    """
    found = _PART_NAME.fullmatch(names[0])
    if found is None:
        if len(names) > 1:
            raise CheckpointError(
                f"'{folder.name}' has {len(names)} GGUF files ({', '.join(names[:4])})",
                remedy=f"name one of them: '{folder.path / names[0]}'",
            )
        return list(names)
    stem, _, total = found.groups()
    parts = [f"{stem}-{number + 1:05}-of-{total}.gguf" for number in range(int(total))]
    others = [name for name in names if name not in parts]
    if others:
        raise CheckpointError(
            f"'{folder.name}' has GGUF files of several models ({parts[0]}, {others[0]})",
            remedy=f"name the first part of one of them: '{folder.path / parts[0]}'",
        )
    missing = [part for part in parts if not folder.has(part)]
    if missing or not parts:
        raise CheckpointError(
            f"'{folder.name}' lacks {len(missing)} of the {len(parts)} parts of '{stem}'"
            + (f", such as '{missing[0]}'" if missing else ""),
            remedy=COPY_AGAIN,
        )
    return parts
