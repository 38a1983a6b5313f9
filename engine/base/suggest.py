"""The valid name that a misspelt one is most like."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LISTED = 30
"""Names that a message lists."""
_LONGEST = 1000
"""Characters of a name that is compared with others."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """``did you mean 'x'?`` with the closest of the valid names, or else the list of them."""
    names = sorted(set(valid))
    close = nearest(name, names)
    if close is not None:
        return f"did you mean '{close}'?"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"known: {', '.join(names[:_LISTED])}{more}" if names else ""


def nearest(name: str, valid: Iterable[str], likeness: float = 0.6) -> str | None:
    """The valid name that is most like ``name``, whatever its case; ``None`` if none is.

    ``likeness`` is the least ratio of equal letters, from 0 to 1.
    """
    folded: dict[str, str] = {}
    for each in sorted(set(valid)):
        folded.setdefault(each.casefold(), each)
    close = difflib.get_close_matches(name[:_LONGEST].casefold(), folded, n=1, cutoff=likeness)
    return folded[close[0]] if close else None
