"""Blocks of codes in jobs, against the library that defines them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from mergeloom.engine import job as jobs
from mergeloom.engine.base.dtypes import F32, GGML
from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.graph import Graph
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.hardware import process as machine
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.job import Options
from mergeloom.engine.plan.schedule import schedule
from tests.engine.kernels import Normalised
from tests.engine.support import GraphMaker, file_source, job, sha256, spec, tensor_of

SHAPES = [(5, 768), (2100, 1024)]


def this_machine() -> Machine:
    return spec(2, 300 * MIB, 0)


def codes(kind: gguf.GGMLQuantizationType, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Random blocks whose scales are finite."""
    chance = np.random.default_rng(seed)
    if kind in (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1):
        values = chance.standard_normal(shape).astype(np.float32)
        return np.asarray(gguf.quantize(values, kind))
    row = gguf.quant_shape_to_byte_shape(shape, kind)[1]
    return chance.integers(0, 256, (shape[0], row), dtype=np.uint8)


def graph_of(maker: GraphMaker, kinds: list[int]) -> tuple[Graph, dict[str, np.ndarray]]:
    """Each kind copied and with its rows the other way round, and two normalised together."""
    make, outputs, expected = maker.builder.merge, {}, {}
    for number in kinds:
        kind, dtype = gguf.GGMLQuantizationType(number), GGML[number]
        for shape in SHAPES if dtype.code in ("Q4_1", "Q6_K") else SHAPES[:1]:
            stored = codes(kind, shape, number)
            path = maker.directory / f"{dtype.code}-{shape[0]}"
            path.write_bytes(b"head" + stored.tobytes())
            tensor = StoredTensor.at(file_source(path), 4, dtype, shape)
            turned = tensor.rows(range(shape[0])[::-1])
            for name, each in ((path.name, tensor), (f"{path.name} turned", turned)):
                load = maker.builder.load_bytes(each.bytes, dtype, shape, name)
                outputs[name] = make([load], Copy(), name), F32
            with np.errstate(all="ignore"):
                values = gguf.dequantize(stored, kind)
            expected[path.name], expected[f"{path.name} turned"] = values, values[::-1]
            if dtype.code == "Q4_1":
                both = [outputs[name][0].gather.inputs[0] for name in list(outputs)[-2:]]
                outputs[f"{path.name} both"] = make(both, Normalised(), "both"), F32
    return maker.graph(outputs), expected


@pytest.fixture(autouse=True)
def fixed_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "this_machine", lambda *_: this_machine())


def test_block_types_are_those_of_the_gguf_package() -> None:
    decoded = {
        int(kind) for kind in gguf.quants._type_traits if kind is not gguf.GGMLQuantizationType.BF16
    }
    assert set(GGML) == decoded
    for number, dtype in GGML.items():
        kind = gguf.GGMLQuantizationType(number)
        block, nbytes = gguf.GGML_QUANT_SIZES[kind]
        assert (dtype.code, dtype.block) == (kind.name, block)
        assert dtype.nbytes(block) == nbytes
        assert dtype.nbytes(7 * block) == 7 * nbytes


def test_values_are_those_of_the_gguf_package_at_every_budget(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    graph, expected = graph_of(GraphMaker(tmp_path / "in"), sorted(GGML))
    least = schedule(graph, None, this_machine()).minimum_bytes
    digests = []
    for number, budget in enumerate((None, least, least + 3 * MIB)):
        out = tmp_path / f"out{number}"
        jobs.run(job(graph), out, Options(ram=budget))
        digests.append(sha256(out)["out.bin"])
    assert len(set(digests)) == 1
    for write in graph.writes:
        if write.name in expected:
            found = tensor_of(tmp_path / "out0", write).numpy()
            np.testing.assert_array_equal(found, expected[write.name])


def test_torch_decodes_the_same_values(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    graph, expected = graph_of(GraphMaker(tmp_path / "in"), [3, 14])
    made = job(graph)
    torch_only = replace(made, arithmetic=made.torch)
    jobs.run(torch_only, tmp_path / "out", Options())
    for write in graph.writes:
        if write.name in expected:
            found = tensor_of(tmp_path / "out", write).numpy()
            np.testing.assert_array_equal(found, expected[write.name])
