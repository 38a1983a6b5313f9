"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MAX_LISTED = 30
"""Maximum number of names listed in a message."""
_MAX_COMPARED = 1000
"""Maximum number of characters of a name that are compared."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """``did you mean 'x'?`` with the closest valid name, or else a list of valid names."""
    names = sorted(set(valid))
    close = nearest(name, names)
    if close is not None:
        return f"did you mean '{close}'?"
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return f"known: {', '.join(names[:_MAX_LISTED])}{more}" if names else ""


def nearest(name: str, valid: Iterable[str], similarity: float = 0.6) -> str | None:
    """The valid name most similar to ``name``, ignoring case; ``None`` if none is similar.

    ``similarity`` is the minimum ratio of matching characters, from 0 to 1.
    """
    folded: dict[str, str] = {}
    for each in sorted(set(valid)):
        folded.setdefault(each.casefold(), each)
    close = difflib.get_close_matches(
        name[:_MAX_COMPARED].casefold(), folded, n=1, cutoff=similarity
    )
    return folded[close[0]] if close else None
