"""Splits tokens into tokens of another tokenizer, and computes the weights of these pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.planners.config.transplant import SubwordWeights
from mergeloom.planners.vocabulary.tokenizer import Tokenizer, tokenizer_json_text


def split_tokens(
    tokenizer: Tokenizer, texts: Mapping[int, bytes], rows: int
) -> dict[int, tuple[int, ...]]:
    """The rows of the pieces of each text; empty if no piece has a row.

    Raises:
        CheckpointError: the tokenizers library is not installed, or cannot read this tokenizer.
    """
    try:
        from tokenizers import Tokenizer as Library
    except ImportError as error:
        raise CheckpointError(
            "splitting tokens needs the package tokenizers",
            remedy="install it (pip install tokenizers), or choose another method than 'subword'",
        ) from error
    try:
        library = Library.from_str(tokenizer_json_text(tokenizer.folder))
    except Exception as error:  # whatever the library raises
        raise CheckpointError(
            f"the tokenizer in '{tokenizer.folder.name}' cannot be used: {_line(error)}",
            remedy="choose another method than 'subword'",
        ) from error
    numbers = list(texts)
    words = [texts[number].decode("utf-8", "replace") for number in numbers]
    found = library.encode_batch(words, add_special_tokens=False)
    return {
        number: tuple(piece for piece in each.ids if piece < rows)
        for number, each in zip(numbers, found, strict=True)
    }


def piece_weights(count: int, how: SubwordWeights, head: bool) -> Sequence[float]:
    """Coefficients of ``count`` pieces in an embedding, or in a ``head``.

    An embedding depends most on the last piece of a token, a head on the first.
    """
    if how == "sum":
        return [1.0] * count
    if how == "first_last":
        chosen = 0 if head else count - 1
        return [float(place == chosen) for place in range(count)]
    if how == "weighted":
        total = count * (count + 1) / 2
        rising = [(place + 1) / total for place in range(count)]
        return rising[::-1] if head else rising
    return [1.0 / max(count, 1)] * count


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
