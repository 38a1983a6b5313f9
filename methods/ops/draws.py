"""Random decisions that depend on what is merged, never on how.

A counter-based generator (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3): the
number that belongs to an element is a hash of the run's seed, the output tensor's name, the
input's position and the element's index. So it is the same for every budget, tile, order, thread
count and device, and may be drawn again in every pass instead of being kept.

The hash is a Weyl sequence over the indices, mixed by the multiplications and shifts of
lowbias32 (Wellons 2018, Prospecting for hash functions) with a second word of key in between. All
arithmetic is that of 32-bit integers, which is exact everywhere.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

WORD = 1 << 32
"""Elements whose numbers are made of the same words, at most."""
HASH = (0x9E3779B1, 0x21F0AAAD, 0xD35A2D97)
"""The step of the sequence, and the factors that mix it."""
_WEYL, _FIRST, _SECOND = HASH
_COUNTED = 1 << 10
"""Elements that are counted one by one; the rest is added on, in runs of doubling length."""


def key_of(seed: int, tensor: str, number: int) -> int:
    """The 64-bit key of the numbers that are drawn for input ``number`` of an output tensor."""
    return _digest(f"{seed}\0{number}\0{tensor}".encode())


def threshold(probability: float) -> int:
    """The bound that a drawn number lies below with ``probability``, but for 2⁻³²."""
    return min(round(probability * WORD), WORD - 1) - WORD // 2


def draw(key: int, start: int, out: Tensor, work: Tensor) -> None:
    """Write the numbers of the elements from ``start`` on to ``out``: uniform over all int32.

    Both tensors are int32, contiguous and of the same shape; ``work`` is overwritten.
    """
    out, work = out.view(-1), work.view(-1)
    place, count = 0, out.numel()
    while place < count:
        stop = min(count, place + WORD - (start + place) % WORD)
        _draw(words(key, start + place), out[place:stop], work[place:stop])
        place = stop


def words(key: int, start: int) -> tuple[int, int]:
    """The two 32-bit words that the numbers from element ``start`` to the next multiple of 2³²
    are made of."""
    high, low = divmod(start, WORD)
    first, second = divmod(_digest(f"{key}\0{high}".encode()), WORD)
    return (first + low * _WEYL) % WORD, second


def _draw(words: tuple[int, int], out: Tensor, work: Tensor) -> None:
    first, second = words
    _count(out, first)
    _fold(out, 16, work)
    out.mul_(_signed(_FIRST)).bitwise_xor_(_signed(second))
    _fold(out, 15, work)
    # The order of the products depends on their high bits, which all lower ones went into.
    out.mul_(_signed(_SECOND))


def _count(out: Tensor, first: int) -> None:
    """Write first + i * _WEYL, modulo 2³², to element ``i``."""
    import torch

    done = min(out.numel(), _COUNTED)
    torch.arange(done, out=out[:done])
    out[:done].mul_(_signed(_WEYL)).add_(_signed(first))
    while done < out.numel():
        more = min(done, out.numel() - done)
        torch.add(out[:more], _signed(done * _WEYL), out=out[done : done + more])
        done += more


def _fold(out: Tensor, bits: int, work: Tensor) -> None:
    """x ^= x >> bits, where the shift fills up with zeros."""
    import torch

    torch.bitwise_right_shift(out, bits, out=work)
    out.bitwise_xor_(work.bitwise_and_((1 << (32 - bits)) - 1))


def _signed(word: int) -> int:
    """The int32 with the low 32 bits of ``word``."""
    return (word + WORD // 2) % WORD - WORD // 2


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
