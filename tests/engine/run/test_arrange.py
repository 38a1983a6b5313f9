"""Whatever the pieces of a tensor are, its dense bytes are those that numpy arranges."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mergeloom.engine.base.dtypes import BF16, F4, F32, U8, DType
from mergeloom.engine.graph.pieces import Joined, Range, Rows, Strided
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.memory.pages import PAGE, page_offset, span_bytes
from mergeloom.engine.run.arrange import read_bytes, read_content
from mergeloom.engine.storage.memory_source import MemorySource
from mergeloom.engine.storage.source import IOMode, Reader, ReadOptions, Source
from tests.engine.support import file_source

KINDS = {2: (BF16, np.dtype(np.uint16)), 4: (F32, np.dtype(np.uint32))}

Pair = tuple[StoredTensor, np.ndarray]


class Maker:
    """Draws tensors and ways to arrange them, both as pieces and in numpy."""

    def __init__(self, seed: int, source: Callable[[bytes], Source], size: int = 2) -> None:
        self.chance = random.Random(seed)
        self._source = source
        self._dtype, self._kind = KINDS[size]

    def tensor(self, shape: tuple[int, ...]) -> Pair:
        numbers = np.frombuffer(
            self.chance.randbytes(int(np.prod(shape)) * self._kind.itemsize), self._kind
        )
        gap = self.chance.randrange(5)
        source = self._source(bytes(gap) + numbers.tobytes() + b"end")
        return StoredTensor.at(source, gap, self._dtype, shape), numbers.reshape(shape)

    def arranged(self, pair: Pair, most: int) -> Pair:
        for _ in range(self.chance.randrange(1, most)):
            pair = getattr(self, self.chance.choice(WAYS))(*pair)
        return pair

    def rows(self, stored: StoredTensor, plain: np.ndarray) -> Pair:
        count = len(plain)
        numbers = [self.chance.randrange(-1, count) for _ in range(self.chance.randrange(6))]
        if self.chance.random() < 0.3:
            numbers = list(range(count))
        if not numbers or not count:
            return stored.rows([]), plain[:0]
        none = np.zeros_like(plain[0])
        return stored.rows(numbers), np.stack([plain[n] if n >= 0 else none for n in numbers])

    def narrow(self, stored: StoredTensor, plain: np.ndarray) -> Pair:
        axis = self.chance.randrange(plain.ndim)
        start, stop = sorted(self.chance.randrange(plain.shape[axis] + 1) for _ in range(2))
        return stored.narrow(axis, start, stop), np.take(plain, range(start, stop), axis)

    def take(self, stored: StoredTensor, plain: np.ndarray) -> Pair:
        axis, step = self.chance.randrange(plain.ndim), self.chance.randrange(1, 4)
        start = self.chance.randrange(plain.shape[axis] + 1)
        indices = range(start, plain.shape[axis], step)
        return stored.take(axis, step, start), np.take(plain, indices, axis)

    def permute(self, stored: StoredTensor, plain: np.ndarray) -> Pair:
        order = self.chance.sample(range(plain.ndim), plain.ndim)
        return stored.permute(order), plain.transpose(order)

    def join(self, stored: StoredTensor, plain: np.ndarray) -> Pair:
        axis = self.chance.randrange(plain.ndim)
        shape = [*plain.shape]
        shape[axis] = self.chance.randrange(1, 4)
        pairs = [(stored, plain), self.tensor(tuple(shape))]
        self.chance.shuffle(pairs)
        joined = StoredTensor.join([each for each, _ in pairs], axis)
        return joined, np.concatenate([each for _, each in pairs], axis)

    def stack(self, stored: StoredTensor, plain: np.ndarray) -> Pair:
        if plain.ndim > 3:
            return stored, plain
        other, beside = self.tensor(plain.shape)
        return StoredTensor.stack([stored, other]), np.stack([plain, beside])

    def reshape(self, stored: StoredTensor, plain: np.ndarray) -> Pair:
        first, *rest = plain.shape
        shape = (first * rest[0], *rest[1:]) if rest else (first, 1)
        return stored.reshape(shape), plain.reshape(shape)


WAYS = ("rows", "narrow", "take", "permute", "join", "stack", "reshape")


def read(
    stored: StoredTensor, start: int, stop: int, readers: dict[int, Reader] | None = None
) -> tuple[bytes, int]:
    """Dense bytes ``[start, stop)`` and how many were read; what lies around them stays."""
    opened = {id(p.source): p.source.open(ReadOptions()) for p in stored.bytes.ranges()}
    block = Block(span_bytes(stop - start) + PAGE)
    at = page_offset(stored.bytes.position(start)) if stop > start else 0
    block.memory[:] = b"\xee" * block.size
    count = read_bytes(stored.bytes, start, stop, block, at, readers or opened)
    if not isinstance(stored.bytes, Range):
        assert block.memory[:at] == b"\xee" * at
        assert block.memory[at + stop - start :] == b"\xee" * (block.size - at - stop + start)
    return bytes(block.memory[at : at + stop - start]), count


@pytest.mark.parametrize("size", [2, 4])
def test_arrangements_of_arrangements_are_those_of_numpy(size: int) -> None:
    maker = Maker(7, lambda content: MemorySource(content, "numbers"), size)
    seen = set()
    for _ in range(600):
        shape = tuple(maker.chance.randrange(1, 6) for _ in range(maker.chance.randrange(1, 4)))
        stored, plain = maker.arranged(maker.tensor(shape), 6)
        expected = plain.tobytes()
        assert stored.shape == plain.shape
        assert stored.bytes.nbytes == len(expected)
        elements = len(expected) // size
        part = sorted(size * maker.chance.randrange(elements + 1) for _ in range(2))
        for start, stop in ((0, len(expected)), tuple(part)):
            found, count = read(stored, start, stop)
            assert found == expected[start:stop]
            assert count == stored.bytes.stored(start, stop)
        seen.add(type(stored.bytes))
    assert seen == {Range, Joined, Rows, Strided}


@pytest.mark.parametrize("mode", IOMode)
def test_large_pieces_of_files_in_every_mode(tmp_path: Path, mode: IOMode) -> None:
    def source(content: bytes) -> Source:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.bin"
        path.write_bytes(content)
        return file_source(path)

    maker = Maker(3, source, 4)
    first, second = maker.tensor((300, 2048)), maker.tensor((200, 2048))
    numbers = [*range(100, 300), -1, -1, *range(0, 90, 2), 7, 7, *range(30)]
    gathered = np.stack([first[1][n] if n >= 0 else 0 * first[1][0] for n in numbers])
    for stored, plain in (
        (first[0].rows(numbers), gathered),
        (StoredTensor.join([first[0], second[0]]), np.concatenate([first[1], second[1]])),
        (first[0].transpose(), first[1].T),
        (first[0].narrow(1, 100, 1900), first[1][:, 100:1900]),
    ):
        expected = plain.tobytes()
        readers = {id(p.source): p.source.open(ReadOptions(mode)) for p in stored.bytes.ranges()}
        for start, stop in ((0, len(expected)), (len(expected) // 12 * 4, len(expected) // 8 * 4)):
            found, count = read(stored, start, stop, readers)
            assert found == expected[start:stop]
            assert count == stored.bytes.stored(start, stop)
        for reader in readers.values():
            reader.close()


class Counted:
    """A reader that counts its requests."""

    connections = 1

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.requests: list[int] = []

    def read(
        self, start: int, stop: int, block: Block, at: int, may_overwrite: bool = True
    ) -> None:
        self.requests.append(stop - start)
        self._reader.read(start, stop, block, at, may_overwrite)

    def check_unchanged(self) -> None: ...

    def close(self) -> None: ...


def requests(stored: StoredTensor) -> list[int]:
    (source,) = {part.source for part in stored.bytes.ranges()}
    reader = Counted(source.open(ReadOptions()))
    read(stored, 0, stored.bytes.nbytes, {id(source): reader})
    return reader.requests


def test_few_requests_are_made() -> None:
    source = MemorySource(bytes(range(256)) * 4096, "numbers")
    stored = StoredTensor.at(source, 0, U8, (1024, 1024))
    assert requests(stored.rows(range(5, 900))) == [895 << 10]
    assert requests(stored.rows([*range(100), -1, *range(100, 1024)])) == [100 << 10, 924 << 10]
    assert requests(stored.rows([3, 5, 4, 9])) == [7 << 10]
    assert requests(stored.rows([9, 5, 300])) == [1 << 10] * 3
    assert len(requests(stored.transpose())) <= (1 << 20) / (256 << 10) * 1024
    assert requests(stored.narrow(1, 0, 1000)) == [(256 << 10) - 24] * 4
    assert requests(stored.rows([-1, -1])) == []
    halves = [stored.narrow(0, 0, 512), stored.narrow(0, 512, 1024)]
    assert requests(StoredTensor.join(halves)) == [1 << 20]


def test_missing_rows_are_zeros_that_are_not_read() -> None:
    source = MemorySource(bytes(range(200)), "numbers")
    stored = StoredTensor.at(source, 0, U8, (10, 20)).rows([0, -1, -1, 3])
    assert stored.bytes.stored(0, 80) == 40
    assert stored.bytes.stored(10, 70) == 20
    assert stored.bytes.has_holes
    expected = bytes([*range(20), *[0] * 40, *range(60, 80)])
    assert bytes(read_content(stored, ReadOptions())) == expected


def test_elements_of_half_a_byte_are_moved_by_whole_bytes() -> None:
    source = MemorySource(bytes(range(64)), "codes")
    codes = StoredTensor.at(source, 0, U8, (4, 16)).view_as(F4)
    assert codes.shape == (4, 32)
    assert bytes(read_content(codes.rows([2]), ReadOptions())) == bytes(range(32, 48))
    with pytest.raises(ValueError, match="cannot be moved one by one"):
        codes.transpose()
    with pytest.raises(ValueError, match="not a whole number of bytes"):
        codes.reshape((128,)).narrow(0, 1, 3)


def test_strided_storages_are_read_as_torch_reads_them() -> None:
    numbers = np.arange(60, dtype=np.uint16)
    source = MemorySource(b"head" + numbers.tobytes(), "storage")
    stored = StoredTensor.strided(source, 4 + 10, BF16, (3, 4), (2, 12))
    expected = np.lib.stride_tricks.as_strided(numbers[5:], (3, 4), (4, 24))
    assert bytes(read_content(stored, ReadOptions())) == expected.tobytes()
    plain = StoredTensor.strided(source, 4, BF16, (3, 4), (4, 1))
    assert isinstance(plain.bytes, Range)
    spread = StoredTensor.strided(source, 4, BF16, (3, 2), (0, 1))
    assert bytes(read_content(spread, ReadOptions())) == numbers[:2].tobytes() * 3


WRONG: dict[str, Callable[[StoredTensor], object]] = {
    r"row 3 is not one of 3 rows": lambda t: t.rows([3]),
    r"1:5 is not within 4": lambda t: t.narrow(1, 1, 5),
    r"has no dimension 2": lambda t: t.narrow(2, 0, 1),
    r"is not a permutation of 2 dimensions": lambda t: t.permute([0, 0]),
    r"cannot be reshaped to \(5,\)": lambda t: t.reshape((5,)),
    r"cannot be joined along axis 0": lambda t: StoredTensor.join([t, t.transpose()]),
    r"bfloat16 and uint8 cannot be joined": lambda t: StoredTensor.join([t, t.view_as(U8)]),
    r"different shapes cannot be stacked": lambda t: StoredTensor.stack([t, t.transpose()]),
    r"cannot be seen as float32": lambda t: t.narrow(1, 0, 3).view_as(F32),
    r"others were": lambda t: t.transpose().view_as(U8).transpose(),
}


@pytest.mark.parametrize("message", WRONG)
def test_an_impossible_arrangement_is_an_error(message: str) -> None:
    stored = StoredTensor.at(MemorySource(bytes(24), "zero"), 0, BF16, (3, 4))
    with pytest.raises(ValueError, match=message):
        WRONG[message](stored)


def test_equal_arrangements_have_equal_keys_and_descriptions() -> None:
    source = MemorySource(bytes(64), "zero")

    def described(stored: StoredTensor) -> tuple[object, str]:
        return stored.bytes.key, stored.bytes.describe(lambda source: source.identity)

    def tensor(dtype: DType = BF16) -> StoredTensor:
        return StoredTensor.at(source, 0, dtype, (4, 8))

    ways = [
        tensor,
        lambda: tensor().rows([0, 2]),
        lambda: tensor().rows([0, -1]),
        lambda: tensor().transpose(),
        lambda: tensor().narrow(1, 1, 3),
        lambda: StoredTensor.join([tensor(), tensor()], 1),
        lambda: StoredTensor.join([tensor(), tensor()], 0),
    ]
    once, again = [described(way()) for way in ways], [described(way()) for way in ways]
    assert once == again
    assert len({key for key, _ in once}) == len({text for _, text in once}) == len(ways)
