"""HeaderReader of GGUF files, against the gguf package, and files that are none."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.files import FileSource
from mergeloom.engine.storage.gguf import GgufHeader, StringArray, parse_gguf, read_gguf

NUMBERS = {
    "u8": (gguf.GGUFValueType.UINT8, 200),
    "i8": (gguf.GGUFValueType.INT8, -100),
    "u16": (gguf.GGUFValueType.UINT16, 60000),
    "i16": (gguf.GGUFValueType.INT16, -30000),
    "u32": (gguf.GGUFValueType.UINT32, 4_000_000_000),
    "i32": (gguf.GGUFValueType.INT32, -2_000_000_000),
    "f32": (gguf.GGUFValueType.FLOAT32, 0.5),
    "u64": (gguf.GGUFValueType.UINT64, 1 << 63),
    "i64": (gguf.GGUFValueType.INT64, -(1 << 62)),
    "f64": (gguf.GGUFValueType.FLOAT64, 0.1),
    "bool": (gguf.GGUFValueType.BOOL, True),
    "text": (gguf.GGUFValueType.STRING, "naïve 日本"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with every kind of value, and tensors of several types and shapes."""
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    for key, (kind, value) in NUMBERS.items():
        writer.add_key_value(f"a.{key}", value, kind)
    writer.add_array("a.words", ["a", "", "日本"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.floats", [0.5, 1.5])
    chance = np.random.default_rng(0)
    for number, kind in enumerate(("F32", "F16", "Q8_0", "Q4_1", "BF16")):
        values = chance.standard_normal((3, 5 + number, 64)).astype(np.float32)
        stored = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(f"t.{kind}", gguf.quantize(values, stored), raw_dtype=stored)
    writer.add_tensor("t.one", np.ones(7, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_is_read_as_the_gguf_package_reads_it(made: Path) -> None:
    found = read_gguf(FileSource.at(made))
    reader = gguf.GGUFReader(made)
    assert [t.name for t in reader.tensors] == list(found.tensors)
    for tensor in reader.tensors:
        mine = found.tensors[tensor.name]
        assert mine.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert mine.offset == tensor.data_offset
        assert mine.dtype.code == tensor.tensor_type.name
        assert mine.dtype.nbytes(int(np.prod(mine.shape))) == tensor.n_bytes
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            value = found.values[key]
            plain = value.values if isinstance(value, StringArray) else value
            expected = field.contents()
            assert plain == (tuple(expected) if isinstance(expected, list) else expected)
    assert made.read_bytes().startswith(found.raw)


def test_a_header_is_read_piece_by_piece(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_gguf(FileSource.at(made))
    monkeypatch.setattr("mergeloom.engine.storage.gguf._FIRST_READ", 5)
    piecewise = read_gguf(FileSource.at(made))
    assert (piecewise.raw, piecewise.tensors) == (whole.raw, whole.tensors)


def test_a_truncated_file_is_refused(made: Path, tmp_path: Path) -> None:
    content = made.read_bytes()
    end = len(read_gguf(FileSource.at(made)).raw)
    path = tmp_path / "short.gguf"
    for length in [*range(end), end, end + 1, len(content) - 100]:
        assert length >= end or parse_gguf(content[:length], len(content), "a.gguf") is None
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError) as error:
            read_gguf(FileSource.at(path))
        assert str(error.value).isprintable()


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def file_of(
    values: bytes = b"", tensors: bytes = b"", counts: tuple[int, int] = (0, 0), version: int = 3
) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, *counts) + values + tensors + bytes(256)


def one(name: str = "a", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


def value(kind: int, content: bytes, key: str = "k") -> bytes:
    return text(key) + struct.pack("<I", kind) + content


HUGE = 1 << 62
BAD: dict[str, tuple[bytes, str]] = {
    "magic": (b"PK\x03\x04" + bytes(100), "does not begin with 'GGUF'"),
    "version 1": (
        file_of(version=1),
        "has version 1 of GGUF, and only versions 2 and 3 are supported: merge its original",
    ),
    "version 9": (file_of(version=9), "has version 9 of GGUF"),
    "big-endian": (file_of(version=3 << 24), "is a big-endian GGUF file, which is not"),
    "tensors": (file_of(counts=(HUGE, 0)), "claims 4611686018427387904 tensors"),
    "values": (file_of(counts=(0, HUGE)), "claims 4611686018427387904 values"),
    "long key": (file_of(struct.pack("<Q", HUGE), counts=(0, 1)), "has a key of"),
    "empty key": (file_of(struct.pack("<Q", 0), counts=(0, 1)), "a key of 0 bytes"),
    "odd key": (file_of(value(0, b"a", "a\nb"), counts=(0, 1)), "is not a valid key"),
    "same key": (file_of(2 * value(0, b"a"), counts=(0, 2)), "the key 'k' twice"),
    "kind": (file_of(value(77, b""), counts=(0, 1)), "unknown value type 77"),
    "long text": (file_of(value(8, struct.pack("<Q", HUGE)), counts=(0, 1)), "length"),
    "not UTF-8": (
        file_of(value(8, struct.pack("<Q", 2) + b"\xff\xfe"), counts=(0, 1)),
        "'k' is not UTF-8",
    ),
    "long array": (
        file_of(value(9, struct.pack("<IQ", 4, HUGE)), counts=(0, 1)),
        "a length in its header is wrong",
    ),
    "many strings": (
        file_of(value(9, struct.pack("<IQ", 8, HUGE)), counts=(0, 1)),
        "claims 4611686018427387904 strings",
    ),
    "long string": (
        file_of(value(9, struct.pack("<IQQ", 8, 1, HUGE)), counts=(0, 1)),
        "extends beyond the end",
    ),
    "nested": (
        file_of(value(9, struct.pack("<IQ", 9, 1)), counts=(0, 1)),
        "has an array of arrays as 'k', which is not supported: merge its original",
    ),
    "alignment": (
        file_of(value(4, struct.pack("<I", 0), "general.alignment"), counts=(0, 1)),
        "'general.alignment' must be a multiple of 8",
    ),
    "same tensor": (file_of(tensors=2 * one(), counts=(2, 0)), "the tensor 'a' twice"),
    "tensor's name": (file_of(tensors=one("a\x1b"), counts=(1, 0)), "is not a valid tensor name"),
    "tensor's name not UTF-8": (
        file_of(tensors=struct.pack("<Q", 2) + b"\xff\xfe", counts=(1, 0)),
        "a tensor name is not UTF-8: copy or download",
    ),
    "overlap": (file_of(tensors=one() + one("b"), counts=(2, 0)), "'b' overlaps 'a': copy"),
    "dimensions": (file_of(tensors=one(shape=(1,) * 5), counts=(1, 0)), "5 dimensions"),
    "size": (file_of(tensors=one(shape=(HUGE, HUGE)), counts=(1, 0)), "impossibly large shape"),
    "type": (
        file_of(tensors=one(kind=99), counts=(1, 0)),
        "has the tensor 'a' of the unknown type 99: merge its original",
    ),
    "blocks": (file_of(tensors=one(kind=12), counts=(1, 0)), "in a block of Q4_K"),
    "offset": (file_of(tensors=one(offset=7), counts=(1, 0)), "not aligned to 32 bytes"),
    "outside": (file_of(tensors=one(offset=1 << 20), counts=(1, 0)), "extends beyond its end"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    content, reason = BAD[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_gguf(FileSource.at(path))
    assert reason in str(error.value)
    assert error.value.remedy
    assert str(error.value).isprintable()


def test_the_sound_file_of_these_cases_is_read() -> None:
    content: Any = file_of(value(0, b"a"), one(), counts=(1, 1))
    header = parse_gguf(content, len(content), "a.gguf")
    assert isinstance(header, GgufHeader)
    assert dict(header.values) == {"k": 97}
    assert header.tensors["a"].shape == (4,)
