"""Files that torch.save wrote, read without unpickling, against torch.load."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.files import FileSource
from mergeloom.engine.storage.pickled import PickleFault, read_pickle
from mergeloom.engine.storage.torch_zip import TorchFile, read_torch

DTYPES = [
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn),
    *(torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    *(torch.bool, torch.uint16, torch.uint32, torch.complex64),
]


def values(path: Path, found: TorchFile, name: str) -> bytes:
    """The bytes of a tensor in the order of its elements, by its entry."""
    dtype, shape, offset, strides = found.entries[name]
    content = np.fromfile(path, dtype=np.uint8)[offset:]
    item = dtype.size
    view = np.lib.stride_tricks.as_strided(
        content, (*shape, item), (*(step * item for step in strides), 1)
    )
    return view.tobytes()


def expected(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().reshape(-1).clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().tobytes()


def saved(value: Any, path: Path) -> TorchFile:
    torch.save(value, path)
    return read_torch(FileSource.at(path))


def test_tensors_of_every_dtype_are_read(tmp_path: Path) -> None:
    state = {str(dtype): torch.randint(0, 2, (3, 5)).to(dtype) for dtype in DTYPES}
    path = tmp_path / "a.bin"
    found = saved(state, path)
    assert list(found.entries) == list(state)
    for name, tensor in state.items():
        assert found.entries[name].shape == (3, 5)
        assert values(path, found, name) == expected(tensor)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_views_of_shared_storages_are_read(data: st.DataObject, tmp_path: Path) -> None:
    whole = torch.arange(7 * 6 * 5, dtype=torch.float32).view(7, 6, 5)
    state = {}
    for number in range(data.draw(st.integers(1, 4))):
        view = whole
        for axis in range(3):
            start = data.draw(st.integers(0, view.shape[axis]))
            stop = data.draw(st.integers(start, view.shape[axis]))
            step = data.draw(st.integers(1, 3))
            view = view.narrow(axis, start, stop - start)
            view = view[tuple([slice(None)] * axis + [slice(None, None, step)])]
        view = view.permute(data.draw(st.permutations(range(3))))
        if data.draw(st.booleans()) and view.shape[0]:
            view = view[0]
        state[f"t{number}"] = view
    state["row of all"] = torch.ones(3).expand(4, 3)
    path = tmp_path / "a.pt"
    found = saved(state, path)
    for name, tensor in state.items():
        assert found.entries[name].shape == tuple(tensor.shape)
        if tensor.numel():
            assert values(path, found, name) == expected(tensor)


def test_parameters_and_subclasses_are_read_and_modules_refused(tmp_path: Path) -> None:
    class Marked(torch.Tensor):
        pass

    globals()["Marked"] = Marked  # torch.save wants to find it
    Marked.__qualname__ = "Marked"
    layer = torch.nn.Linear(3, 2)
    parameter = torch.nn.Parameter(torch.randn(2, 3))
    parameter.note = "kept as an attribute"
    state = {
        **layer.state_dict(),
        "parameter": parameter,
        "marked": torch.randn(4).as_subclass(Marked),
    }
    path = tmp_path / "a.pth"
    found = saved(collections.OrderedDict(state), path)
    for name, tensor in state.items():
        assert values(path, found, name) == expected(torch.Tensor(tensor.data))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_read(protocol: int, tmp_path: Path) -> None:
    state = {"a": torch.randn(2, 2), "b": torch.randn(3)}
    torch.save(state, tmp_path / "a.pt", pickle_protocol=protocol)
    assert list(read_torch(FileSource.at(tmp_path / "a.pt")).entries) == ["a", "b"]


NESTED = {
    "lightning": ({"state_dict": {"a": 1}, "optimizer_states": [{"m": 1}], "epoch": 3}, ["a"]),
    "model beside optimizer": ({"model": {"a": 1}, "optimizer": {"state": {0: {"m": 1}}}}, ["a"]),
    "parallel": ({"module.a": 1, "module.b.c": 1}, ["a", "b.c"]),
    "parallel inside": ({"state_dict": {"module.a": 1}}, ["a"]),
    "the only one": ({"net": {"a": 1, "b": 1}, "step": 5}, ["a", "b"]),
    "flattened": ({"a": 1, "b": {"c": 1, "d": {"e": 1}}}, ["a", "b.c", "b.d.e"]),
}


def filled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: filled(item) for key, item in value.items()}
    return torch.randn(2) if type(value) is int and value == 1 else value


@pytest.mark.parametrize("kind", NESTED)
def test_tensors_are_found_in_nested_dictionaries(kind: str, tmp_path: Path) -> None:
    value, names = NESTED[kind]
    assert sorted(saved(filled(value), tmp_path / "a.ckpt").entries) == sorted(names)


class Config:
    """Something that training programs leave in their files."""

    def __init__(self) -> None:
        self.rate = 0.1


def test_objects_beside_the_weights_are_not_made(tmp_path: Path) -> None:
    value = {"state_dict": {"a": torch.ones(2)}, "hyper_parameters": Config(), "seen": {1, 2}}
    assert list(saved(value, tmp_path / "a.ckpt").entries) == ["a"]


class Evil:
    def __reduce__(self) -> Any:
        return (eval, ("__import__('pathlib').Path('harm').write_text('done')",))


def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(saved({"a": torch.ones(2), "b": Evil()}, tmp_path / "a.bin").entries) == ["a"]
    with pytest.raises(CheckpointError, match=r"object of class '.*builtin.*\.eval'"):
        saved(Evil(), tmp_path / "b.bin")
    assert not (tmp_path / "harm").exists()


class Named(dict[str, Any]):
    """A dictionary of a class of its own, as some training programs save."""


T = torch.arange(6.0).reshape(2, 3)

REFUSED: dict[str, tuple[Any, str]] = {
    "a list": ([T], "holds a list, not named tensors: save a dictionary"),
    "one tensor": (T, "holds one tensor, not named tensors: save a dictionary"),
    "two sets": ({"params": {"a": T}, "ema": {"a": T}}, "several sets .*'params', 'ema'"),
    "no tensors": ({"a": 5}, "no named tensors: check"),
    "arrays alone": ({"a": T.numpy()}, "no named tensors"),
    "a module": (torch.nn.Linear(2, 2), r"class 'torch\.nn\.modules\.linear\.Linear'"),
    "a module as model": (
        {"model": torch.nn.Linear(2, 2), "epoch": 3},
        r"an object of class 'torch\.nn\.modules\.linear\.Linear' as 'model'.*its state_dict",
    ),
    "a module beside averages": (
        {"model": torch.nn.Linear(2, 2), "ema": {"a": T}},
        r"an object of class '.*Linear' as 'model'",
    ),
    "a dictionary of a class": ({"state_dict": Named(a=T)}, r"class '.*Named' as 'state_dict'"),
    "one of two of a class": ({"a": Named(w=T), "b": {"w": T}}, r"several sets .*'a', 'b'"),
    "complex": (
        {"a": torch.ones(2, dtype=torch.complex128)},
        r"the dtype 'complex128'.*save it as x\.to\(torch\.complex64\)",
    ),
    "four bits": (
        {"a": torch.zeros(2, 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)},
        r"the dtype 'float4_e2m1fn_x2'.*save it in another dtype",
    ),
    "sparse": (
        {"a": T, "b": {"c": torch.eye(2).to_sparse()}},
        r"'b\.c' is created by 'torch\._utils\._rebuild_sparse_tensor'.*to_dense",
    ),
    "quantised": (
        {"a": T, "b": torch.quantize_per_tensor(T, 0.1, 0, torch.quint8)},
        r"'b' is created by 'torch\._utils\._rebuild_qtensor'.*dequantize",
    ),
    "no values": (
        {"a": T, "b": torch.empty(2, device="meta")},
        r"'b' is created by 'torch\._utils\._rebuild_meta_tensor_no_storage'",
    ),
    "conjugated": (
        {"a": T, "b": T.to(torch.complex64).conj()},
        r"'b' is created by 'torch\._utils\._rebuild_tensor_v2 \(conj\)'.*resolve_conj",
    ),
    "negated": (
        {"a": T, "b": T.to(torch.complex64).conj().imag},
        r"'b' is created by 'torch\._utils\._rebuild_tensor_v2 \(neg\)'.*resolve_neg",
    ),
    "a module beside tensors": (
        {"a": T, "b": torch.nn.Linear(2, 2)},
        r"'b' is created by 'torch\.nn\.modules\.linear\.Linear'",
    ),
    "a list beside tensors": ({"a": T, "b": [T, T]}, "'b' is a list of tensors: save each"),
    "an array beside tensors": ({"a": T, "b": T.numpy()}, "'b' is an array of numpy"),
    "a storage beside tensors": ({"a": T, "b": torch.ones(2).storage()}, "'b' is a storage"),
    "numbers as names": ({"a": T, "b": {0: T}}, r"'b\.0' is a key that is not text"),
    "pairs as names": ({"a": T, ("b", 0): T}, r"'\.\.\.' is a key that is not text"),
    "one name twice": ({"a": {"b": T}, "a.b": T + 1}, r"'a\.b' is the name of two tensors"),
    "deep": (
        {"a": T, "b": {"c": {"d": {"e": {"f": {"g": T}}}}}},
        r"'b\.c\.d\.e\.f' has tensors within more than 4 dictionaries",
    ),
    "a line as a name": ({"a\nb": T}, r"'a\\nb' is not a valid tensor name: save"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_no_tensor_of_a_saved_object_is_left_out_silently(kind: str, tmp_path: Path) -> None:
    value, words = REFUSED[kind]
    with pytest.raises(CheckpointError, match=words) as caught:
        saved(value, tmp_path / "a")
    assert caught.value.remedy


def test_files_of_other_formats_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before 1\.6.*save it again"):
        read_torch(FileSource.at(path))
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_torch(FileSource.at(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(CheckpointError, match=r"that torch\.save did not write"):
        read_torch(FileSource.at(path))
    path.write_bytes(b"no such thing")
    with pytest.raises(CheckpointError, match=r"not written by torch\.save"):
        read_torch(FileSource.at(path))


def test_a_file_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    torch.save({"a": torch.randn(8, 8), "b": torch.randn(3)}, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    for length in range(0, len(content), 23):
        (tmp_path / "cut.pt").write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_torch(FileSource.at(tmp_path / "cut.pt"))


def _changed(path: Path, changes: dict[str, bytes | None]) -> None:
    """Write an archive again with other records; one that is ``None`` is left out."""
    with zipfile.ZipFile(path) as old:
        records = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in {**records, **changes}.items():
            if content is not None:
                new.writestr(f"a/{name}", content)


def _pickle_of(tensor: tuple[Any, ...], *, persistent: Any = None) -> bytes:
    """The pickle of a tensor as torch.save writes it, with other arguments."""

    class Storage:
        pass

    class Rebuilt:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Storage(), *tensor, False, {})

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            whole = ("storage", torch.FloatStorage, "0", "cpu", 6)
            return (persistent or whole) if isinstance(obj, Storage) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"a": Rebuilt()})
    return buffer.getvalue()


DAMAGED: dict[str, tuple[dict[str, bytes | None], str]] = {
    "other byte order": ({"byteorder": b"big"}, "is big-endian, which is not supported: load it"),
    "no storage": ({"data/0": None}, "the bytes of 'a' are missing: copy"),
    "short storage": ({"data/0": bytes(20)}, "'a' is larger than its storage: copy"),
    "strides": ({"data.pkl": _pickle_of((0, (2, 3), (1,)))}, "'a' has an invalid shape: copy"),
    "offset": ({"data.pkl": _pickle_of((1, (2, 3), (3, 1)))}, "'a' is larger than its storage"),
    "size": (
        {"data.pkl": _pickle_of((0, (-2, 3), (3, 1)))},
        r"it calls torch\._utils\._rebuild_tensor_v2 with unexpected arguments: load it",
    ),
    "another object": (
        {"data.pkl": _pickle_of((0, (2, 3), (3, 1)), persistent=("module", "a", "b", "c", 1))},
        "it refers to an object that is not a torch storage: load it",
    ),
    "a storage without a class": (
        {"data.pkl": _pickle_of((0, (2, 3), (3, 1)), persistent=("storage", "a", "0", "cpu", 1))},
        "it has an invalid reference to a torch storage: load it",
    ),
    "no end": ({"data.pkl": b"\x80\x02}"}, "without executing its pickle: .*: load it"),
    "a mark": ({"data.pkl": b"\x80\x02(."}, r"it is damaged \(a mark instead of a value\)"),
    "no mark": ({"data.pkl": b"\x80\x02t."}, r"it is damaged \(no mark\)"),
    "a class without a name": ({"data.pkl": b"\x80\x04NN\x93."}, "it has an invalid class name"),
    "an extension": ({"data.pkl": b"\x80\x02\x82\x01."}, "unsupported instruction EXT1"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_archive_says_what_is_wrong_and_what_to_do(kind: str, tmp_path: Path) -> None:
    torch.save({"a": T}, tmp_path / "a.pt")
    changes, words = DAMAGED[kind]
    _changed(tmp_path / "a.pt", changes)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_torch(FileSource.at(tmp_path / "a.pt"))
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("limit", "value"), [("MAX_PICKLE_BYTES", 9), ("MAX_RECORDS", 2), ("MAX_ENTRIES", 1)]
)
def test_what_is_too_large_for_a_checkpoint_is_refused(
    limit: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": T, "b": T}, tmp_path / "a.pt")
    monkeypatch.setattr(f"mergeloom.engine.storage.torch_zip.{limit}", value)
    with pytest.raises(CheckpointError, match=f"more than {value}.*save a state_dict"):
        read_torch(FileSource.at(tmp_path / "a.pt"))


def test_a_place_in_an_archive_that_is_no_record_is_refused(tmp_path: Path) -> None:
    torch.save({"a": T}, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content.replace(b"PK\x03\x04", b"PK\x03\x05"))
    with pytest.raises(CheckpointError, match="not written by"):
        read_torch(FileSource.at(tmp_path / "a.pt"))
    place = content.rindex(b"PK\x03\x04", 0, content.index(b"data/0"))
    (tmp_path / "a.pt").write_bytes(content[:place] + b"PK\x00\x00" + content[place + 4 :])
    with pytest.raises(CheckpointError, match="it is not a valid zip archive: copy"):
        read_torch(FileSource.at(tmp_path / "a.pt"))


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(64)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as plain,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    with pytest.raises(CheckpointError, match="compressed"):
        read_torch(FileSource.at(tmp_path / "b.pt"))


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_a_fault(content: bytes) -> None:
    try:
        read_pickle(content)
    except PickleFault:
        return


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_pickle_is_a_value_or_a_fault(data: st.DataObject) -> None:
    buffer = io.BytesIO()
    pickle.dump({"a": [1, (2, "x")], "b": {"c": 1.5, "d": None}}, buffer, protocol=4)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_pickle(bytes(content))
    except PickleFault:
        return
