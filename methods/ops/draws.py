"""Random numbers that depend on what is merged, never on how.

A counter-based generator (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3): the
number of an element is a hash of the run's seed, the output tensor's name, the input's position
and the element's index. So it is the same for every budget, tile, order, thread count and device,
and can be recomputed in every pass instead of being stored.

The hash is a Weyl sequence over the indices, mixed by the multiplications and shifts of
lowbias32 (Wellons 2018, Prospecting for hash functions) with a second key word in between. All
arithmetic is on 32-bit integers, and so exact everywhere.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

WORD = 1 << 32
"""Maximum number of elements that share the two key words."""
HASH = (0x9E3779B1, 0x21F0AAAD, 0xD35A2D97)
"""The step of the Weyl sequence, and the mixing factors."""
_WEYL, _FIRST, _SECOND = HASH
_COUNTED = 1 << 10
"""Length of the first run of counters; the rest is filled in runs of doubling length."""


def key_of(seed: int, tensor: str, number: int) -> int:
    """The 64-bit key of the random numbers for input ``number`` of an output tensor."""
    return _digest(f"{seed}\0{number}\0{tensor}".encode())


def threshold(probability: float) -> int:
    """The int32 bound that a number is below with ``probability``, to within 2⁻³²."""
    return min(round(probability * WORD), WORD - 1) - WORD // 2


def draw(key: int, start: int, out: Tensor, work: Tensor) -> None:
    """Write the random numbers of the elements from ``start`` on to ``out``: uniform over int32.

    Both tensors are int32, contiguous and of the same shape; ``work`` is overwritten.
    """
    out, work = out.view(-1), work.view(-1)
    place, count = 0, out.numel()
    while place < count:
        stop = min(count, place + WORD - (start + place) % WORD)
        _draw(key_words(key, start + place), out[place:stop], work[place:stop])
        place = stop


@lru_cache(maxsize=64)  # the passes over a small tensor ask for the same ones
def key_words(key: int, start: int) -> tuple[int, int]:
    """The two 32-bit key words for the numbers from element ``start`` to the next multiple of
    2³²."""
    high, low = divmod(start, WORD)
    first, second = divmod(_digest(f"{key}\0{high}".encode()), WORD)
    return (first + low * _WEYL) % WORD, second


def _draw(key_words: tuple[int, int], out: Tensor, work: Tensor) -> None:
    first, second = key_words
    _count(out, first)
    _fold(out, 16, work)
    out.mul_(_signed(_FIRST)).bitwise_xor_(_signed(second))
    _fold(out, 15, work)
    # Comparisons depend on the high bits of the product, which all lower bits have entered.
    out.mul_(_signed(_SECOND))


def _count(out: Tensor, first: int) -> None:
    """Write first + i · _WEYL modulo 2³² to element ``i``."""
    import torch

    done = min(out.numel(), _COUNTED)
    torch.arange(done, out=out[:done])
    out[:done].mul_(_signed(_WEYL)).add_(_signed(first))
    while done < out.numel():
        more = min(done, out.numel() - done)
        torch.add(out[:more], _signed(done * _WEYL), out=out[done : done + more])
        done += more


def _fold(out: Tensor, bits: int, work: Tensor) -> None:
    """x ^= x >> bits, with a logical shift."""
    import torch

    torch.bitwise_right_shift(out, bits, out=work)
    out.bitwise_xor_(work.bitwise_and_((1 << (32 - bits)) - 1))


def _signed(word: int) -> int:
    """The int32 with the low 32 bits of ``word``."""
    return (word + WORD // 2) % WORD - WORD // 2


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
