"""Blocks of the ledger, as the kernel sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergeloom.engine.memory.ledger import Block

_SMAPS = Path("/proc/self/smaps")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


def flags_at(address: int) -> list[str]:
    """The kernel's flags of the mapping that contains an address."""
    inside = False
    for line in _SMAPS.read_text().splitlines():
        name, _, rest = line.partition(" ")
        if "-" in name and not name.endswith(":"):
            start, _, stop = name.partition("-")
            inside = int(start, 16) <= address < int(stop, 16)
        elif inside and name == "VmFlags:":
            return rest.split()
    raise AssertionError(f"no mapping contains {address:#x}")


@pytest.mark.skipif(
    not (_SMAPS.exists() and _HUGE_PAGES.exists()), reason="the kernel has no huge pages"
)
def test_a_large_block_asks_for_huge_pages_and_a_small_one_does_not() -> None:
    large, small = Block(4 << 20), Block(1 << 20)
    assert "hg" in flags_at(large.address)
    assert "hg" not in flags_at(small.address)
