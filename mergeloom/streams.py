"""Makes the standard streams usable: open, and able to encode all output."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
import unicodedata
from typing import TextIO

_ASCII = {
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
    """Make standard input, output and error usable, for the rest of the process.

    A closed stream becomes the null device; otherwise the next file to be opened would get its
    descriptor, and libraries would print into that file. Characters that a stream cannot encode are
    replaced by ASCII.
    """
    if "idlelib" not in sys.modules and os.name == "posix":
        _fill_closed_descriptors()
    codecs.register_error(_HANDLER, _ascii_replacement)
    sys.stdout = _usable_stream(sys.stdout)
    sys.stderr = _usable_stream(sys.stderr)


def _fill_closed_descriptors() -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(os.devnull, os.O_RDWR)
        while descriptor <= 2:
            os.set_inheritable(descriptor, True)
            descriptor = os.open(os.devnull, os.O_RDWR)
        os.close(descriptor)


def _usable_stream(stream: TextIO | None) -> TextIO:
    if stream is None:  # it was closed
        return _ClosedStream()
    with contextlib.suppress(AttributeError, ValueError, OSError):
        stream.reconfigure(errors=_HANDLER)  # type: ignore[attr-defined]  # if it can
    return stream


def detach_unwritable() -> None:
    """Drop streams that cannot be flushed; the interpreter would report an error for them at
    exit."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError):
            setattr(sys, name, None)


class _ClosedStream(io.StringIO):
    """Discards output to a closed stream."""

    is_closed_stream = True

    def write(self, text: str) -> int:
        return len(text)


def _ascii_replacement(error: UnicodeError) -> tuple[str, int]:
    """ASCII replacements of characters that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(map(_ascii_text, missing)), error.end


def _ascii_text(character: str) -> str:
    if character in _ASCII:
        return _ASCII[character]
    bare = unicodedata.normalize("NFKD", character)
    plain = "".join(part for part in bare if part.isascii())
    if plain:
        return plain
    name = unicodedata.name(character, "")
    if name.startswith("GREEK"):
        return name.split()[-1].lower()
    return "" if unicodedata.combining(character) else "?"
