"""Selects the weight files of a model in a folder."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from mergeloom.engine.base.errors import COPY_AGAIN, CheckpointError
from mergeloom.engine.storage.folder import Folder
from mergeloom.engine.storage.safetensors import MAX_NAME, HeaderReader
from mergeloom.planners.models.formats import FORMATS, SAFETENSORS, WeightFormat
from mergeloom.planners.models.small_files import MAX_JSON_BYTES, parse_object

_NUMBERED_SHARD = re.compile(r"(.*)-(\d{1,9})-of-(\d{1,9})\.\w+")


_VARIANT = re.compile(r"\.(?:fp16|bf16|fp32|non_ema|ema)((?:-\d+-of-\d+)?\.\w+)$")
"""Name parts of diffusers files with the same weights in another dtype or form."""


def weight_files(folder: Folder, known: HeaderReader | None = None) -> dict[str, set[str]]:
    """The weight files in order, each with the tensors that the index lists for it.

    They are the files that transformers reads, of the first format that has them: a single file, or
    else the files of an index. Without either, which transformers does not load, they are the files
    of a numbered series, or else all except those of another purpose (the original's own format, an
    adapter).

    Raises:
        CheckpointError: there are none that can be read, or some are missing.
    """
    names = folder.names()
    for format_ in FORMATS:
        if format_.single in names:
            return {format_.single: set()}
        if format_.index in names:
            return indexed_shards(folder, format_.index, known)
    for format_ in FORMATS:
        found = [n for n in names if n.endswith(format_.suffixes) and n not in format_.others]
        found = _preferred_files(found, format_)
        if found:
            _check_numbering(folder, found)
            if len(found) > 1 and not (format_.several or all(map(_NUMBERED_SHARD.match, found))):
                raise CheckpointError(
                    f"'{folder.name}' has several files of weights ({', '.join(found[:4])})",
                    remedy="keep only one of them",
                )
            return {name: set() for name in found}
    raise CheckpointError(
        f"'{folder.name}' has no .safetensors files, and no .bin or .pt either",
        remedy="copy or download its weights",
    )


def passed_over(folder: Folder, read: Mapping[str, set[str]]) -> tuple[str, ...]:
    """Weight files and indexes other than those that are ``read``."""
    names = folder.names()
    found = [name for name in names if name.endswith(SAFETENSORS.suffixes)]
    found += [
        format_.index for format_ in FORMATS if format_.single in read and format_.index in names
    ]
    return tuple(name for name in found if name not in read and name.isprintable())


def indexed_shards(
    folder: Folder, index: str, known: HeaderReader | None = None
) -> dict[str, set[str]]:
    """The shards listed in the file ``index``, each with its tensors; one that is ``known`` is not
    parsed again.

    Raises:
        CheckpointError: it is malformed, or a shard is missing.
    """
    where, content = f"'{folder.name}/{index}'", folder.read(index, MAX_JSON_BYTES)
    key = "index", hashlib.blake2b(content).digest()
    shards = (known or HeaderReader()).once(key, lambda: _shards(where, content))
    for shard in shards:
        path = PurePosixPath(shard)
        if path.is_absolute() or ".." in path.parts or "\\" in shard or not shard.isprintable():
            raise CheckpointError(
                f"{where} names {shard[:200]!r} outside the checkpoint",
                remedy="put the shards into its folder, and their names into the index",
            )
        if not folder.has(shard):
            raise CheckpointError(
                f"'{folder.name}' lacks the shard '{shard[:200]}'",
                remedy=COPY_AGAIN,
            )
    return shards


def _shards(where: str, content: bytes) -> dict[str, set[str]]:
    """The shards in the ``content`` of an index, each with its tensors.

    Raises:
        CheckpointError: it is malformed.
    """
    weight_map = parse_object(content, where).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{where} has no 'weight_map'", remedy=COPY_AGAIN)
    if not "".join(weight_map).isprintable() or len(max(weight_map, key=len)) > MAX_NAME:
        odd = next(name for name in weight_map if not name.isprintable() or len(name) > MAX_NAME)
        raise CheckpointError(f"{where}: {odd[:80]!a} is not a tensor name", remedy=COPY_AGAIN)
    if any(kind is not str for kind in set(map(type, weight_map.values()))):
        lost = next(name for name, shard in weight_map.items() if not isinstance(shard, str))
        raise CheckpointError(f"{where}: '{lost}' is in no file", remedy=COPY_AGAIN)
    shards: defaultdict[str, set[str]] = defaultdict(set)
    for tensor, shard in weight_map.items():
        shards[shard].add(tensor)
    return dict(sorted(shards.items()))


def _preferred_files(names: list[str], format_: WeightFormat) -> list[str]:
    """The model's files among files without an index; variants only if there is nothing else."""
    plain = [name for name in names if not _VARIANT.search(name)]
    names = plain or names
    family = format_.single.partition(".")[0] + "-"
    numbered = [name for name in names if name.startswith(family) and _NUMBERED_SHARD.match(name)]
    others = [name for name in names if not name.startswith(("consolidated", "adapter_model"))]
    return numbered or others or names


def _check_numbering(folder: Folder, names: Sequence[str]) -> None:
    """Check that numbered shards without an index are complete."""
    found = [match.groups() for name in names if (match := _NUMBERED_SHARD.match(name))]
    for (family, total), count in Counter((family, total) for family, _, total in found).items():
        if count < int(total):
            raise CheckpointError(
                f"'{folder.name}' has {count} of the {int(total)} shards '{family}-*-of-{total}', "
                "and no index",
                remedy=COPY_AGAIN,
            )
