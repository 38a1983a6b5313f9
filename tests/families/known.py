"""Faults that are known, by family and what is judged of it, with the point of the issue.

An entry whose fault is mended makes the check fail: delete it with the mend.
"""

from __future__ import annotations

KNOWN: dict[str, str] = {}
