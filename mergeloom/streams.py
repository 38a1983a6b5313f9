"""Makes standard streams usable: open, and able to encode all output."""

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

    A closed stream becomes the null device; otherwise the first opened file would get its
    descriptor, and libraries would print into that file. A stream with a non-Unicode encoding gets
    ASCII replacements of other characters.
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
    if stream is None:  # it was closed
        return _Nowhere()
    with contextlib.suppress(AttributeError, ValueError, OSError):
        stream.reconfigure(errors=_HANDLER)  # type: ignore[attr-defined]
    return stream


def abandon() -> None:
    """Suppress the interpreter's error at exit about a stream that cannot be flushed."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError):
            setattr(sys, name, None)


class _Nowhere(io.StringIO):
    """Discards output to a closed stream."""

    is_nowhere = True

    def write(self, text: str) -> int:
        return len(text)


def _spelt(error: UnicodeError) -> tuple[str, int]:
    """ASCII replacements of characters that an encoding lacks."""
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
