"""Standard streams that can be relied on: open, and able to carry every letter in some spelling."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
import unicodedata
from typing import TextIO

_SPELT = {
    "≤": "<=",
    "≥": ">=",
    "…": "...",
    "\N{MINUS SIGN}": "-",
    "·": "*",
    "\N{MULTIPLICATION SIGN}": "x",
    "→": "->",
    "Σ": "sum",
    "‖": "||",
    "∈": "in",
    "√": "sqrt",
    "∞": "inf",
    "≈": "~",
    "\N{EN DASH}": "-",
    "—": "-",
    "“": '"',
    "”": '"',
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    **dict(zip("░▁▂▃▄▅▆▇█", "._,-=+*%#", strict=True)),  # bars and curves
    **dict.fromkeys("▏▎▍▌▋▊▉", "|"),
}
_HANDLER = "mergeloom"


def prepare() -> None:
    """Make standard input, output and error streams usable, for the rest of the process.

    A stream that is closed becomes the null device: else the first file that is opened gets its
    number, and whatever a library prints goes into that file. A stream in another encoding than
    Unicode's gets plain spellings of what it lacks.
    """
    if "idlelib" not in sys.modules and os.name == "posix":
        _fill_closed_numbers()
    codecs.register_error(_HANDLER, _spelt)
    sys.stdout = _usable(sys.stdout)
    sys.stderr = _usable(sys.stderr)


def _fill_closed_numbers() -> None:
    with contextlib.suppress(OSError):
        number = os.open(os.devnull, os.O_RDWR)
        while number <= 2:
            os.set_inheritable(number, True)
            number = os.open(os.devnull, os.O_RDWR)
        os.close(number)


def _usable(stream: TextIO | None) -> TextIO:
    if stream is None:  # Python's way to say that it was closed
        return _Nowhere()
    with contextlib.suppress(AttributeError, ValueError, OSError):
        stream.reconfigure(errors=_HANDLER)  # type: ignore[attr-defined]
    return stream


def abandon() -> None:
    """Keep the interpreter from complaining that a stream cannot be flushed when it ends."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError):
            setattr(sys, name, None)


class _Nowhere(io.StringIO):
    """Where what is written to a closed stream goes."""

    is_nowhere = True

    def write(self, text: str) -> int:
        return len(text)


def _spelt(error: UnicodeError) -> tuple[str, int]:
    """Plain letters for those that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(map(_letter, missing)), error.end


def _letter(letter: str) -> str:
    if letter in _SPELT:
        return _SPELT[letter]
    bare = unicodedata.normalize("NFKD", letter)
    plain = "".join(part for part in bare if part.isascii())
    if plain:
        return plain
    name = unicodedata.name(letter, "")
    if name.startswith("GREEK"):
        return name.split()[-1].lower()
    return "" if unicodedata.combining(letter) else "?"
