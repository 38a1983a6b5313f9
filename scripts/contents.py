"""Values for generated tensors: fast, deterministic, and in a few megabytes of memory.

A pool of random values is made for each distribution that a model needs. A tensor is a row of
blocks that begin at pseudo-random places of its pool, so that filling it costs a copy. A
fine-tune reads the same places of a pool that differs from its base's by small deltas.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from scripts.shapes import Tensor

Array = npt.NDArray[Any]

BLOCK = 1 << 16
_LARGEST_POOL = 1 << 21
_PERIOD = 1 << 10
_DELTA = 0.02  # of the weights' standard deviation
_UNTOUCHED = 1.645  # standard deviations: one element in ten


class Contents:
    """The bytes of one checkpoint's tensors.

    Args:
        seed: of the checkpoint; with ``finetune_of`` only of its deltas.
        finetune_of: seed of the checkpoint that this one is a fine-tune of.
        dtype: ``bf16``, ``f16`` or ``f32``.
        largest: elements of the largest tensor; it bounds the pools, which a base and its
            fine-tunes must have alike.
        compressible: repeat 1024 values within each tensor.
    """

    def __init__(
        self, seed: int, finetune_of: int | None, dtype: str, largest: int, compressible: bool
    ) -> None:
        self._root = seed if finetune_of is None else finetune_of
        self._delta = None if finetune_of is None else seed
        self._dtype = dtype
        self._compressible = compressible
        self._length = max(_PERIOD, min(_LARGEST_POOL, 1 << (4 * largest).bit_length()))
        self._deltas: Array | None = None
        self._pools: dict[tuple[float, float], Array] = {}

    def blocks(self, tensor: Tensor) -> Iterator[Array]:
        """The tensor's elements in order, in blocks of at most 64 Ki elements."""
        elements = math.prod(tensor.shape)
        pool = self._pool(tensor.mean, tensor.std)
        digest = hashlib.sha256(f"{self._root}:{tensor.name}".encode()).digest()
        places = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        count = -(-elements // BLOCK)
        if self._compressible:
            starts = np.full(count, places.integers(_PERIOD))
        else:
            starts = places.integers(self._length, size=count)
        for number, start in enumerate(starts.tolist()):
            yield pool[start : start + min(BLOCK, elements - number * BLOCK)]

    def _pool(self, mean: float, std: float) -> Array:
        pool = self._pools.get((mean, std))
        if pool is None:
            values = self._normal("values", self._root) * np.float32(std) + np.float32(mean)
            values = _rounded(values, self._dtype)
            if self._delta is not None:
                exact = _exact(values, self._dtype)
                deltas = self._touching(self._delta) * np.float32(std * _DELTA)
                values = _rounded(exact + deltas, self._dtype)
            pool = self._pools[mean, std] = np.resize(values, self._length + BLOCK)
        return pool

    def _normal(self, purpose: str, seed: int) -> Array:
        digest = hashlib.sha256(f"{purpose}:{seed}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        if not self._compressible:
            return rng.standard_normal(self._length, np.float32)
        pattern = rng.standard_normal(_PERIOD, np.float32)
        return np.resize(pattern, self._length)

    def _touching(self, seed: int) -> Array:
        if self._deltas is None:
            deltas = self._normal("deltas", seed)
            deltas[np.abs(self._normal("untouched", seed)) > _UNTOUCHED] = 0.0
            self._deltas = deltas
        return self._deltas


def _rounded(values: Array, dtype: str) -> Array:
    if dtype == "f32":
        return values
    if dtype == "f16":
        return values.astype(np.float16)
    bits: Array = values.view(np.uint32)
    bits = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    return bits.astype(np.uint16)


def _exact(values: Array, dtype: str) -> Array:
    if dtype == "bf16":
        bits: Array = values.astype(np.uint32) << 16
        return bits.view(np.float32)
    return values.astype(np.float32)
