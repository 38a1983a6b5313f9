"""Converts tokenizers in older files with transformers, and names packages that it needs.

The format of a file is recognised here, by its first bytes, because the errors of transformers may
name the wrong package (tiktoken for a sentencepiece model).
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

_MODEL_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model")
_TOKEN_LISTS = ("vocab.json", "vocab.txt")
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n")
_REMEDY = "or save it as tokenizer.json once (AutoTokenizer's save_pretrained does)"


@dataclass(frozen=True, slots=True)
class _OlderFile:
    """A tokenizer file in an older format, and the packages needed to read it: names to import and
    to install. With ``needs_own_code``, only code in the model's repository can read it."""

    name: str
    what: str
    packages: tuple[tuple[str, str], ...] = ()
    needs_own_code: bool = False


def has_older_files(folder: Folder) -> bool:
    """Whether ``folder`` has a tokenizer in an older format."""
    return _older_file(folder) is not None


def convert_older_files(folder: Folder) -> str | None:
    """A folder's older files converted to the text of a ``tokenizer.json``; ``None`` if there are
    none.

    Raises:
        CheckpointError: a package is missing, or they cannot be converted.
    """
    older = _older_file(folder)
    if older is None:
        return None
    what = f"'{folder.name}' has no tokenizer.json, and its {older.name} is {older.what}"
    if older.needs_own_code:
        raise CheckpointError(
            f"{what}, which only code from the model can read, and that is never run",
            remedy=_REMEDY.removeprefix("or "),
        )
    needed = (("transformers", "transformers"), *older.packages)
    missing = [package for name, package in needed if not _is_there(name)]
    if missing:
        raise CheckpointError(
            f"{what}, which transformers converts"
            + (f" by {' and '.join(p for _, p in older.packages)}" if older.packages else ""),
            remedy=f"install what is missing (pip install {' '.join(missing)}), {_REMEDY}",
        )
    try:
        with _silenced(), local_copy(folder, MAX_BYTES) as directory:
            text = _convert(directory)
    except Exception as error:  # its libraries raise many types
        lines = str(error).strip().splitlines()
        reason = (lines[0] if lines else type(error).__name__)[:200].rstrip(".: ")
        raise CheckpointError(
            f"{what}, and transformers cannot convert it: {reason}",
            remedy=_REMEDY.removeprefix("or "),
        ) from error
    return text


def _convert(directory: str) -> str:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer: Any
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception:  # of any type: if the next attempt fails too, its error is reported
        tokenizer = None
    if not hasattr(tokenizer, "backend_tokenizer"):  # of another library, or of an unknown class
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    text: str = tokenizer.backend_tokenizer.to_str()
    return text


def _older_file(folder: Folder) -> _OlderFile | None:
    if folder.has("tekken.json"):
        packages = (("mistral_common", "mistral-common"),)
        return _OlderFile("tekken.json", "a tekken tokenizer of Mistral", packages)
    for name in _MODEL_FILES:
        if folder.has(name):
            return _model_file(name, read_content(folder, name))
    found = next((name for name in folder.names() if name.endswith(".tiktoken")), None)
    if found is not None:
        return _OlderFile(found, "a tiktoken file", needs_own_code=True)
    for name in _TOKEN_LISTS:
        if folder.has(name):
            return _OlderFile(name, "a list of tokens without rules")
    return None


def _model_file(name: str, content: bytes) -> _OlderFile:
    if _TIKTOKEN.match(content):
        return _OlderFile(name, "a tiktoken file", (("tiktoken", "tiktoken"),))
    packages = (("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf"))
    return _OlderFile(name, "a sentencepiece model", packages)


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


@contextmanager
def _silenced() -> Iterator[None]:
    """Suppress warnings of transformers, which do not matter here."""
    # Its first call sets the level of the logger, so it comes before the change.
    from transformers.utils import logging as own

    own.get_logger()
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
