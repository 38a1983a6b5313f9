"""Pages shared by two adjacent tiles: the writer of the second part writes the whole page.

Tiles of a file may meet at any byte, but direct requests consist of whole pages. Writing partial
pages through the page cache would serialise them with all direct requests to the file, which
doubles the time of writing. Instead, the first part is kept until the adjacent tile is written,
whose request then covers the whole page.

    tile 1  ▓▓▓▓▓▓▓▓░░          page kept:  ░░··
    tile 2          ▒▒▒▒▒▒▒▒    request:    ░░▒▒▒▒▒▒▒▒
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from mergeloom.engine.memory.pages import PAGE

Part = tuple[int, bytes]
"""File offset and bytes of a part of a page."""


class SharedPages:
    """Parts of pages of one file that are kept until the rest is written. Thread-safe.

    Each byte of a file must be added exactly once.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._kept: dict[int, list[Part]] = {}
        self._joined: dict[int, Part] = {}
        """The kept parts that are being written with their adjacent part, by page."""

    def join(self, start: int, content: memoryview) -> Part | None:
        """Add a part of a page. Returns the rest of the page if it was kept, to be written by the
        caller, who then calls `pages_written`. Otherwise the part is kept."""
        page = start // PAGE
        with self._changed:
            parts = self._kept.setdefault(page, [])
            if len(parts) == 1 and len(parts[0][1]) + len(content) == PAGE:
                del self._kept[page]
                self._joined[page] = parts[0]
                return parts[0]
            parts.append((start, bytes(content)))
            return None

    def pages_written(self, parts: Iterable[Part], written: bool) -> None:
        """Report whether joined pages were written; if not, their kept ``parts`` are kept again."""
        with self._changed:
            for part in parts:
                page = part[0] // PAGE
                del self._joined[page]
                if not written:
                    self._kept.setdefault(page, []).append(part)
            self._changed.notify_all()

    def take(self) -> list[Part]:
        """Remove and return all kept parts, for the caller to write. Waits for parts that are being
        written with their adjacent part, and includes those for which that failed."""
        with self._changed:
            awaited = list(self._joined.values())
            self._changed.wait_for(
                lambda: not any(self._joined.get(part[0] // PAGE) is part for part in awaited)
            )
            kept, self._kept = self._kept, {}
            return [part for parts in kept.values() for part in parts]

    def give_back(self, parts: Iterable[Part]) -> None:
        """Keep parts again that were taken but could not be written."""
        with self._changed:
            for part in parts:
                self._kept.setdefault(part[0] // PAGE, []).append(part)
