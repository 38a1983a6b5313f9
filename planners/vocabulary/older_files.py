"""Tokenizers of older files, which transformers converts: which ones, and what it needs for that.

transformers says of a sentencepiece model that tiktoken is missing, and the like; so the formats
are told apart here, by a file's first bytes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.storage.folder import Folder, local_copy
from mergeloom.planners.vocabulary.tokens import MAX_BYTES, read_content

_PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model")
_PLAIN = ("vocab.json", "vocab.txt")
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n")
_REMEDY = "or save it as tokenizer.json once (AutoTokenizer's save_pretrained does)"


@dataclass(frozen=True, slots=True)
class _Older:
    """A file of an older format: what it is, the packages without which it cannot be read (names to
    import and to install), and whether only code that comes with the model can read it."""

    name: str
    what: str
    packages: tuple[tuple[str, str], ...] = ()
    own_code: bool = False


def has_older_files(folder: Folder) -> bool:
    """Whether there is a tokenizer, of whatever format."""
    return _older(folder) is not None


def converted(folder: Folder) -> str | None:
    """What transformers makes of a folder's older files, as the text of a ``tokenizer.json``;
    ``None`` if there are none.

    Raises:
        CheckpointError: packages are missing for that, or it cannot be done.
    """
    older = _older(folder)
    if older is None:
        return None
    what = f"'{folder.name}' has no tokenizer.json, and its {older.name} is {older.what}"
    if older.own_code:
        raise CheckpointError(
            f"{what}, which only code from the model can read, and that is never run",
            remedy=_REMEDY.removeprefix("or "),
        )
    needed = (("transformers", "transformers"), *older.packages)
    lacking = [package for name, package in needed if not _is_there(name)]
    if lacking:
        raise CheckpointError(
            f"{what}, which transformers converts"
            + (f" by {' and '.join(p for _, p in older.packages)}" if older.packages else ""),
            remedy=f"install what is missing (pip install {' '.join(lacking)}), {_REMEDY}",
        )
    try:
        with _quiet(), local_copy(folder, MAX_BYTES) as directory:
            text = _by_transformers(directory)
    except Exception as error:  # whatever its libraries raise
        lines = str(error).strip().splitlines()
        reason = (lines[0] if lines else type(error).__name__)[:200].rstrip(".: ")
        raise CheckpointError(
            f"{what}, and transformers cannot convert it: {reason}",
            remedy=_REMEDY.removeprefix("or "),
        ) from error
    return text


def _by_transformers(directory: str) -> str:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    made: Any
    try:
        made = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception:  # of whatever kind: the plain reading follows, and its error is told
        made = None
    if not hasattr(made, "backend_tokenizer"):  # of another library, or of no class that is known
        made = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    text: str = made.backend_tokenizer.to_str()
    return text


def _older(folder: Folder) -> _Older | None:
    if folder.has("tekken.json"):
        packages = (("mistral_common", "mistral-common"),)
        return _Older("tekken.json", "a tekken tokenizer of Mistral", packages)
    for name in _PIECES:
        if folder.has(name):
            return _of_pieces(name, read_content(folder, name))
    found = next((name for name in folder.names() if name.endswith(".tiktoken")), None)
    if found is not None:
        return _Older(found, "a tiktoken file", own_code=True)
    for name in _PLAIN:
        if folder.has(name):
            return _Older(name, "a list of tokens without rules")
    return None


def _of_pieces(name: str, content: bytes) -> _Older:
    if _TIKTOKEN.match(content):
        return _Older(name, "a tiktoken file", (("tiktoken", "tiktoken"),))
    packages = (("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf"))
    return _Older(name, "a sentencepiece model", packages)


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of transformers that do not matter here."""
    # The first time, it sets its level: when asked, and not only when imported.
    from transformers.utils import logging as own

    own.get_logger()
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
