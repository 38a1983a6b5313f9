"""Pages that two neighbours share: who writes the second part writes the page.

Tiles of a file follow each other at any byte; direct requests are of whole pages. To write the ends
by themselves, through the page cache, makes each wait until no direct request to the file is under
way, and the next ones wait for it: half of the time of writing. So the part that comes first is
kept until its neighbour comes, whose request then covers the whole page.

    tile 1  ▓▓▓▓▓▓▓▓░░          page kept:  ░░··
    tile 2          ▒▒▒▒▒▒▒▒    request:    ░░▒▒▒▒▒▒▒▒
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from mergeloom.engine.memory.pages import PAGE

Part = tuple[int, bytes]
"""Where in the file a part of a page begins, and its bytes."""


class SharedPages:
    """Parts of one file's pages that wait for the rest. Safe to use from several threads.

    Every byte of a file is given once.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._kept: dict[int, list[Part]] = {}
        self._joined: dict[int, Part] = {}
        """By page: what was kept, and is being written with its neighbour."""

    def join(self, start: int, content: memoryview) -> Part | None:
        """Give a part of a page. Returns the rest of it if that is here; it counts as written when
        `finished` is called. Otherwise the part is kept."""
        page = start // PAGE
        with self._changed:
            parts = self._kept.setdefault(page, [])
            if len(parts) == 1 and len(parts[0][1]) + len(content) == PAGE:
                del self._kept[page]
                self._joined[page] = parts[0]
                return parts[0]
            parts.append((start, bytes(content)))
            return None

    def finished(self, parts: Iterable[Part], written: bool) -> None:
        """Pages that were joined were written whole, or were not: then their parts are kept."""
        with self._changed:
            for part in parts:
                page = part[0] // PAGE
                del self._joined[page]
                if not written:
                    self._kept.setdefault(page, []).append(part)
            self._changed.notify_all()

    def take(self) -> list[Part]:
        """All parts that are kept now: the caller is to write them. Those that are being written
        with their neighbours are waited for, or are among them where that failed."""
        with self._changed:
            awaited = list(self._joined.values())
            self._changed.wait_for(
                lambda: not any(self._joined.get(part[0] // PAGE) is part for part in awaited)
            )
            kept, self._kept = self._kept, {}
            return [part for parts in kept.values() for part in parts]

    def give_back(self, parts: Iterable[Part]) -> None:
        """Keep again what was taken and could not be written."""
        with self._changed:
            for part in parts:
                self._kept.setdefault(part[0] // PAGE, []).append(part)
