"""GGUF metadata of a transformers tokenizer.

The counterpart of `planners.models.gguf.tokenizer`. GGUF identifies the splitting rule by name; a
tokenizer with another rule cannot be exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.folder import Folder
from mergeloom.planners.models.gguf.tokenizer import CONTROL, SPLITTING_PATTERNS, USER_DEFINED
from mergeloom.planners.vocabulary.chat_template import template_of
from mergeloom.planners.vocabulary.tokenizer import (
    Tokenizer,
    added_tokens,
    read_tokenizer,
    tokenizer_json,
)

_NORMAL, _UNKNOWN, _UNUSED, _BYTE = 1, 2, 5, 6
_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_PREFIX = "tokenizer.ggml."
_SCORE_WITHOUT_MERGE = -1e9
"""Score of a piece that is not the result of a merge."""


def tokenizer_metadata(folder: Folder, rows: int, where: str) -> dict[str, Any]:
    """The metadata of the tokenizer in ``folder`` for an embedding with ``rows`` rows; empty if
    there is no tokenizer. ``where`` is the model's name in messages.

    Raises:
        CheckpointError: GGUF cannot express it.
    """
    document, tokenizer = tokenizer_json(folder), read_tokenizer(folder)
    if document is None or tokenizer is None:
        return {}
    model = document.get("model")
    if not isinstance(model, dict) or tokenizer.kind != "BPE":
        raise _not_expressible(where, f"it is of the type {tokenizer.kind}, not BPE")
    if max(tokenizer.ids.values(), default=0) >= rows:
        raise CheckpointError(
            f"'{where}' has tokens without a row in its embedding",
            remedy="merge it with 'tokenizer: {source: base}' first, which leaves them out, or "
            "export with --no-tokenizer",
        )
    parts = list(_splitting_steps(document))
    if any(part.get("type") == "ByteLevel" for part in parts):
        metadata: dict[str, Any] = {
            "model": "gpt2",
            "pre": _splitting_rule(parts, where),
            "merges": _merges(model),
        }
    elif model.get("byte_fallback") is True:
        metadata = {
            "model": "llama",
            "pre": "default",
            "add_space_prefix": _adds_space_prefix(document),
        }
    else:
        raise _not_expressible(where, "it cannot represent arbitrary bytes")
    tokens, kinds = _tokens(document, tokenizer, rows, metadata["model"] == "llama")
    metadata |= {"tokens": tokens, "token_type": kinds}
    if metadata["model"] == "llama":
        metadata["scores"] = _scores(tokens, model)
    for role, key in _ROLES.items():
        number = tokenizer.ids.get(tokenizer.special_names.get(role, ""))
        if number is not None:
            metadata[key] = number
    metadata["add_bos_token"] = _adds_bos_token(document)
    found = {_PREFIX + key: value for key, value in metadata.items()}
    template = template_of(folder)
    return found if template is None else {**found, "tokenizer.chat_template": template}


def _splitting_steps(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The steps of splitting text."""
    first = document.get("pre_tokenizer")
    inside = first.get("pretokenizers") if isinstance(first, dict) else None
    for part in inside if isinstance(inside, list) else [first]:
        if isinstance(part, dict):
            yield part


def _splitting_rule(parts: list[Mapping[str, Any]], where: str) -> str:
    """The GGUF name of the splitting rule."""
    others = [part for part in parts if part.get("type") != "ByteLevel"]
    if not others:
        return "gpt-2"
    if (
        len(others) == 1
        and others[0].get("type") == "Digits"
        and others[0].get("individual_digits")
    ):
        return "smollm"
    pattern = others[0].get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    name = next((name for name, split in SPLITTING_PATTERNS.items() if split == regex), None)
    if name is None or len(others) > 1:
        raise _not_expressible(where, "GGUF has no name for its pre-tokenizer")
    return name


def _merges(model: Mapping[str, Any]) -> list[str]:
    return [each if isinstance(each, str) else " ".join(each) for each in model.get("merges", [])]


def _tokens(
    document: Mapping[str, Any], tokenizer: Tokenizer, rows: int, has_byte_fallback: bool
) -> tuple[list[str], list[int]]:
    """Tokens by id, and their kinds; rows without a token are marked unused."""
    tokens = [f"[PAD{number}]" for number in range(rows)]
    kinds = [_UNUSED] * rows
    for token, number in tokenizer.ids.items():
        tokens[number] = token
        spelled = (
            has_byte_fallback
            and len(token) == 6
            and token.startswith("<0x")
            and token.endswith(">")
        )
        kinds[number] = _BYTE if spelled else _NORMAL
    for each in added_tokens(document, tokenizer.settings, tokenizer.ids, tokenizer.folder.name):
        kinds[each.number] = CONTROL if each.special else USER_DEFINED
    unknown = tokenizer.ids.get(tokenizer.special_names.get("unk_token", ""))
    if unknown is not None and has_byte_fallback:
        kinds[unknown] = _UNKNOWN
    return tokens, kinds


def _scores(tokens: list[str], model: Mapping[str, Any]) -> list[float]:
    """Scores that reproduce the order of merges."""
    made: dict[str, int] = {}
    for rank, merge in enumerate(_merges(model)):
        made.setdefault(merge.replace(" ", "", 1), rank)
    return [float(-made[token]) if token in made else _SCORE_WITHOUT_MERGE for token in tokens]


def _adds_space_prefix(document: Mapping[str, Any]) -> bool:
    """Whether a space is prepended to text."""
    before = document.get("normalizer")
    inside = before.get("normalizers") if isinstance(before, dict) else None
    steps = inside if isinstance(inside, list) else [before]
    if any(isinstance(step, dict) and step.get("type") == "Prepend" for step in steps):
        return True
    return any(
        part.get("type") == "Metaspace" and part.get("prepend_scheme") != "never"
        for part in _splitting_steps(document)
    )


def _adds_bos_token(document: Mapping[str, Any]) -> bool:
    """Whether a beginning-of-text token is prepended."""
    after = document.get("post_processor")
    inside = after.get("processors") if isinstance(after, dict) else None
    for step in inside if isinstance(inside, list) else [after]:
        single = step.get("single") if isinstance(step, dict) else None
        if isinstance(single, list) and single and isinstance(single[0], dict):
            return "SpecialToken" in single[0]
    return False


def _not_expressible(where: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"the tokenizer of '{where}' cannot be written to a GGUF file: {why}",
        remedy="export with --no-tokenizer, and give the program that reads the file the tokenizer",
    )
