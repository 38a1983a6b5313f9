"""HeaderReader: what the reference library writes is read here and the other way round; the rest is
refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from mergeloom.engine.base.dtypes import BF16, BY_NAME, F16, F32, DType
from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.files import FileSource
from mergeloom.engine.storage.safetensors import (
    HeaderReader,
    build_header,
    parse_header,
    read_header,
)

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name != "__metadata__" and name.isprintable()
)
shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)
dtypes = st.sampled_from([BF16, F16, F32, BY_NAME["int64"], BY_NAME["uint8"]])


def raw(document: Any, data: int = 0) -> bytes:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return len(content).to_bytes(8, "little") + content + b"\0" * data


@settings(max_examples=60)
@given(
    tensors=st.dictionaries(names, st.tuples(dtypes, shapes), max_size=8),
    metadata=st.dictionaries(st.text("abc", min_size=1), st.text("xyz"), max_size=2),
    alignment=st.sampled_from([8, 64, 4096]),
)
def test_the_reference_library_reads_our_headers(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, tuple[DType, tuple[int, ...]]],
    metadata: dict[str, str],
    alignment: int,
) -> None:
    path = tmp_path_factory.mktemp("built") / "model.safetensors"
    entries = [(name, dtype, shape) for name, (dtype, shape) in tensors.items()]
    entries.sort(key=lambda entry: -entry[1].size)
    header, offsets = build_header(entries, metadata, alignment)
    assert len(header) % alignment == 0
    size = len(header) + sum(math.prod(shape) * dtype.size for _, dtype, shape in entries)
    path.write_bytes(header.ljust(size, b"\0"))
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(tensors)
        assert (file.metadata() or {}) == metadata
        for name, (dtype, shape) in tensors.items():
            assert tuple(file.get_slice(name).get_shape()) == shape
            assert file.get_tensor(name).dtype == dtype.torch
    found = read_header(FileSource.at(path))
    assert {name: (entry.dtype, entry.shape) for name, entry in found.entries.items()} == tensors
    assert found.metadata == metadata
    starts = {name: entry.start for name, entry in found.entries.items()}
    assert [starts[name] for name, _, _ in entries] == offsets


@settings(max_examples=40)
@given(st.dictionaries(names, st.tuples(dtypes, shapes), min_size=1, max_size=8))
def test_files_of_the_reference_library_are_read(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, tuple[DType, tuple[int, ...]]]
) -> None:
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    made = {name: torch.ones(shape).to(dtype.torch) for name, (dtype, shape) in tensors.items()}
    save_file(made, path)
    found = read_header(FileSource.at(path))
    assert {name: (entry.dtype, entry.shape) for name, entry in found.entries.items()} == tensors
    content = path.read_bytes()
    for name, tensor in made.items():
        entry = found.entries[name]
        expected = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        assert content[entry.start : entry.stop] == expected


def tensor(start: int, stop: int, shape: Any = None, dtype: Any = "U8") -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [stop - start] if shape is None else shape,
        "data_offsets": [start, stop],
    }


EMPTY = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
EMPTY_A = b'{"a":%s}' % EMPTY

MALFORMED = {
    "empty": (b"", "not a safetensors file"),
    "short": (b"1234567", "not a safetensors file"),
    "header beyond the file": ((1 << 40).to_bytes(8, "little") + b"{}", "its header would have"),
    "header beyond bounds": ((200 << 20).to_bytes(8, "little") + b"{}", "its header would have"),
    "no json": (raw(b"{"), "broken header"),
    "no object": (raw([1]), "not a JSON object"),
    "deep": (raw(b"[" * 100_000), "broken header"),
    "not utf-8": (raw(b'{"\xff": 1}'), "broken header"),
    "space first": (raw(b" {}"), "not a JSON object"),
    "utf-16": (raw("{}".encode("utf-16-le")), "broken header"),
    "backwards": (
        raw({"a": {"dtype": "F32", "shape": [0], "data_offsets": [4, 0]}}),
        "its data_offsets are not a range: copy",
    ),
    "half a byte": (
        raw({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}),
        "its rows are not whole numbers of bytes",
    ),
    "a number as shape": (
        raw({"a": {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}}),
        "its shape is not a list of numbers",
    ),
    "twice": (raw(b'{"a": %s, "a": {}}' % EMPTY), "it has 'a' twice"),
    "shape twice": (raw(b'{"a": {"shape": [0], "shape": [0]}}'), "has a key twice"),
    "two values": (raw(b"{}{}"), "unexpected content after its end"),
    "two commas": (raw(b'{"a": %s,,}' % EMPTY), "a name of at most"),
    "no comma": (raw(b'{"a": %s "b": %s}' % (EMPTY, EMPTY)), "',' or '}' expected"),
    "leading zeros": (raw(EMPTY_A.replace(b"[0]", b"[00]")), "broken header"),
    "trailing comma": (raw(EMPTY_A.replace(b"[0]", b"[0,]")), "broken header"),
    "line break in a name": (raw({"a\nb": tensor(0, 0)}), "is not a valid tensor name"),
    "control character": (raw({"a\x1b[2J": tensor(0, 0)}), "is not a valid tensor name"),
    "half a character": (raw(b'{"\\ud800": %s}' % EMPTY), "is not a valid tensor name"),
    "long name": (raw({"a" * 1001: tensor(0, 0)}), "broken header"),
    "long description": (raw({"a": {"dtype": "x" * 3000}}), "broken header"),
    "metadata twice": (raw(b'{"__metadata__": {}, "__metadata__": {}}'), "'__metadata__' twice"),
    "metadata key twice": (raw(b'{"__metadata__": {"a": "", "a": ""}}'), "has 'a' twice"),
    "metadata list": (raw({"__metadata__": []}), "'__metadata__' is not text"),
    "metadata unfinished": (raw(b'{"__metadata__": {"a": "b",'), "'__metadata__' is not text"),
    "enormous dimension of nothing": (
        raw({"a": tensor(0, 0, shape=[0, 1 << 70])}),
        "impossibly large",
    ),
    "metadata": (raw({"__metadata__": {"a": 1}}), "'__metadata__' is not text"),
    "no tensor": (raw({"a": 3}), "'a': it needs dtype"),
    "more keys": (raw({"a": {**tensor(0, 1), "x": 1}}, 1), "'a': it needs dtype"),
    "dtype": (
        raw({"a": tensor(0, 1, dtype="Q4")}, 1),
        "has an unsupported tensor: 'a': its dtype 'Q4' is unknown",
    ),
    "dtype list": (raw({"a": tensor(0, 1, dtype=["U8"])}, 1), "is unknown"),
    "gap": (raw({"a": tensor(0, 1), "b": tensor(2, 3)}, 3), "'b' leaves a gap"),
    "overlap": (raw({"a": tensor(0, 2), "b": tensor(1, 3)}, 3), "'b' overlaps"),
    "reversed": (raw({"a": tensor(3, 1, shape=[2])}, 3), "not a range"),
    "negative": (raw({"a": tensor(-1, 1)}, 1), "data_offsets has '-1'"),
    "bool": (raw({"a": tensor(0, 1, shape=[True])}, 1), "shape has 'True'"),
    "float": (raw({"a": tensor(0, 1, shape=[1.0])}, 1), "shape has '1.0'"),
    "size": (raw({"a": tensor(0, 4, shape=[3])}, 4), "do not fit its data_offsets"),
    "overflow": (raw({"a": tensor(0, 0, shape=[1 << 40, 1 << 40])}), "impossibly large"),
    "dimensions": (raw({"a": tensor(0, 1, shape=[1] * 33)}, 1), "33 dimensions"),
    "truncated": (raw({"a": tensor(0, 9)}, 5), "is truncated"),
    "trailing": (raw({"a": tensor(0, 3)}, 5), "bytes after its last tensor"),
    "huge number": (raw(b'{"a": {"shape": [' + b"9" * 5000 + b"]}}"), "broken header"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused_by_name(tmp_path: Path, case: str) -> None:
    content, expected = MALFORMED[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_header(FileSource.at(path))
    assert expected in str(caught.value)
    assert caught.value.remedy
    assert "bad.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


WRITTEN = {
    "compact": b'{"a":%s,"b":%s}' % (EMPTY, EMPTY),
    "padded": EMPTY_A.replace(b"}}", b"} } \n\t") + b"    ",
    "spaced": EMPTY_A.replace(b":", b" : ").replace(b",", b" ,\n").replace(b"[", b"[ "),
    "another order": b'{"a":{"shape":[0],"data_offsets":[0,0],"dtype":"U8"}}',
    "escaped name": rb'{"\u0061\"":%s}' % EMPTY,
    "no metadata": b'{"__metadata__":null,"a":%s}' % EMPTY,
    "empty metadata": b'{ "__metadata__" : { } , "a":%s}' % EMPTY,
    "metadata last": b'{"a":%s,"__metadata__":{"k" : "\\u00e4 \xc3\xa4" , "l":"}"} }' % EMPTY,
    "not in order": rb'{"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},'
    rb'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
}


@pytest.mark.parametrize("case", WRITTEN)
def test_any_spelling_of_the_json_header_is_read(case: str) -> None:
    content = WRITTEN[case]
    expected = json.loads(content)
    metadata = expected.pop("__metadata__", None) or {}
    data = max(value["data_offsets"][1] for value in expected.values())
    entries, found = parse_header(content, 8 + len(content) + data, "x")
    assert found == metadata
    start = 8 + len(content)
    assert {
        name: [entry.dtype.code, list(entry.shape), [entry.start - start, entry.stop - start]]
        for name, entry in entries.items()
    } == {name: [v["dtype"], v["shape"], v["data_offsets"]] for name, v in expected.items()}
    assert [entry.start for entry in entries.values()] == sorted(
        entry.start for entry in entries.values()
    )


@given(st.data())
def test_mutated_headers_are_read_or_refused(data: st.DataObject) -> None:
    header, _ = build_header([("a.weight", F32, (3, 4)), ("b", BF16, (5,))], {"k": "v"}, 8)
    content = bytearray(header[8:])
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    try:
        entries, _ = parse_header(bytes(content), len(header) + 58, "x")
    except CheckpointError:
        return
    ends = sorted((entry.start, entry.stop) for entry in entries.values())
    assert ends[-1][1] == len(header) + 58


def test_equal_headers_are_kept_once(tmp_path: Path) -> None:
    tensor = torch.zeros(3, 4)
    for name, values in {"a": tensor, "b": tensor + 1, "c": torch.zeros(4, 3)}.items():
        save_file({"w": values}, tmp_path / name)
    headers = HeaderReader()
    first, second, other = (headers.read(FileSource.at(tmp_path / name)) for name in "abc")
    assert second is first
    assert other.entries["w"].shape == (4, 3)
    assert other.digest != first.digest


def test_an_equal_header_is_checked_against_each_file(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(3, 4)}, tmp_path / "a")
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes()[:-1])
    headers = HeaderReader()
    headers.read(FileSource.at(tmp_path / "a"))
    with pytest.raises(CheckpointError, match="truncated"):
        headers.read(FileSource.at(tmp_path / "b"))


def test_later_tensors_of_a_layout_are_checked_as_the_first() -> None:
    def content(second: str) -> bytes:
        members = ['"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}', second]
        return f"{{{','.join(members)}}}".encode()

    good = content('"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}  ')
    assert list(parse_header(good, 8 + len(good) + 16, "x")[0]) == ["a", "b"]
    for second, message in {
        '"b":{"dtype":"F32","shape":[2],"data_offsets":[8,12]}': "do not fit",
        '"b":{"dtype":"F32","shape":[2],"data_offsets":[16,8]}': "not a range",
        '"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}': "'a' twice",
        '"\u200b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}': "not a valid tensor name",
        '"b":{"dtype":"F32","shape":[2],"data_offsets":[9,17]}': "leaves a gap",
        '"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]};': "expected at byte",
    }.items():
        bad = content(second)
        with pytest.raises(CheckpointError, match=message):
            parse_header(bad, 8 + len(bad) + 16, "x")
