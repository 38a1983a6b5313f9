"""Clones on file systems that share extents, mounted from files; skipped where that cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mergeloom.engine import job as jobs
from mergeloom.engine.base.dtypes import BF16, F32
from mergeloom.engine.base.errors import RunError
from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.graph import Graph
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.job import Options
from mergeloom.engine.memory.pages import PAGE
from mergeloom.engine.output.manifest import read_manifest
from mergeloom.engine.output.verify_output import verify_output
from mergeloom.engine.run.clone import CloneBytes, may_share, possible_clones
from mergeloom.engine.run.outcome import Outcome, predicted
from mergeloom.engine.storage.file_system import Files
from mergeloom.engine.storage.source import IOMode
from tests.engine.kernels import Weighted
from tests.engine.support import GraphMaker, job, sha256, source_name, spec, tensor_of

MACHINE = spec(2, 300 * MIB, 0)


@pytest.fixture(scope="module", params=["btrfs", "xfs"])
def volume(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    kind = request.param
    if shutil.which(f"mkfs.{kind}") is None or os.geteuid() != 0:
        pytest.skip(f"mkfs.{kind} and root are needed")
    directory = tmp_path_factory.mktemp(kind)
    image, place = directory / "image", directory / "volume"
    with open(image, "wb") as file:
        file.truncate(400 * MIB)
    place.mkdir()
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True, capture_output=True)
    mount = ["mount", "-o", "loop", image, place]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip(f"{kind} cannot be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


SHAPES = [(1000, 1024), (8, 512), (700, 2048), (500, 1024), (77,), (300, 1024)]


def graph_in(directory: Path) -> tuple[Graph, list[torch.Tensor]]:
    """Two runs of copies with offsets that agree, one copy without, and one merge."""
    (directory / "in").mkdir(parents=True)
    maker = GraphMaker(directory / "in")
    loads = maker.loads(BF16, SHAPES, gap=104)
    make = maker.builder.merge
    outputs = {
        "a": (make([loads[0]], Copy(), "a"), BF16),
        "small": (make([loads[1]], Copy(), "small"), BF16),
        "b": (make([loads[2]], Copy(), "b"), BF16),
        "merged": (make([loads[3]], Weighted((2.0,)), "merged"), BF16),
        "odd": (make([loads[4]], Copy(), "odd"), BF16),
        "c": (make([loads[5]], Copy(), "c"), BF16),
        "shifted": (make([loads[0]], Copy(), "a"), BF16),
    }
    header = b"head".ljust(4096 + 104)
    tensors = [maker.tensors[load] for load in loads]
    expected = [*tensors[:3], 2 * tensors[3], *tensors[4:], tensors[0]]
    return maker.graph(outputs, header), expected


def run(graph: Graph, output: Path, **options: object) -> Outcome:
    return jobs.run(job(graph), output, Options(machine=MACHINE, **options))


def test_copies_are_clones_with_the_same_bytes(volume: Path, tmp_path: Path) -> None:
    graph, expected = graph_in(volume / "one")
    clones = list(possible_clones(graph))  # what follows each other there and here is one
    names = [[write.name for write in clone.writes] for clone in clones]
    assert names == [["a", "small", "b"], ["odd", "c"]]
    cloned = sum(clone.cloned_bytes for clone in clones)
    edges = sum(clone.nbytes for clone in clones) - cloned
    assert 0 < edges < 4 * PAGE
    outcome = run(graph, volume / "one" / "out")
    assert outcome.clones == CloneBytes(cloned, edges, edges)
    assert outcome.schedule is not None
    rest = 1000 * 2048 + 500 * 2048
    assert outcome.schedule.read_bytes == rest
    assert outcome.read_bytes == rest + edges
    assert outcome.write_bytes == graph.files[0].size - cloned
    assert predicted(outcome)["write_bytes"] == outcome.write_bytes
    assert predicted(outcome)["read_bytes"] == outcome.read_bytes
    for write, tensor in zip(graph.writes, expected, strict=True):
        assert torch.equal(tensor_of(volume / "one" / "out", write), tensor)
    whole = run(graph, volume / "one" / "whole", io=IOMode.DIRECT)
    assert whole.clones == CloneBytes()
    elsewhere = run(graph, tmp_path / "out")
    assert elsewhere.clones == CloneBytes()
    contents = sha256(volume / "one" / "out")
    assert contents == sha256(volume / "one" / "whole") == sha256(tmp_path / "out")
    assert not list((volume / "one" / "out" / ".mergeloom").glob("trial*"))


def test_a_clone_is_verified_against_what_it_was_made_of(volume: Path) -> None:
    graph, _ = graph_in(volume / "two")
    output = volume / "two" / "out"
    run(graph, output)
    manifest = read_manifest(output)
    assert manifest is not None
    origins = {record.name: record.origin for record in manifest.tensors}
    assert [name for name, origin in origins.items() if origin] == ["a", "small", "b", "odd", "c"]
    assert all(bool(record.digest) == (record.origin is None) for record in manifest.tensors)

    def wrong() -> dict[str, str]:
        return {name: why for name, why in verify_output(output).wrong if name in origins}

    assert wrong() == {}
    with open(output / "out.bin", "r+b") as file:
        file.seek(graph.writes[0].offset + 5000)
        file.write(b"??")
    assert wrong().keys() == {"a"}
    source = source_name(graph.loads[0])
    os.utime(source, ns=(1, 1))
    assert all("which has changed" in why for why in wrong().values())
    assert wrong().keys() == {"a", "small", "b", "odd", "c"}


class Killed(BaseException):
    pass


class Failing(Files):
    """Ends the run at the second clone, or refuses to make any after the trial."""

    def __init__(self, error: BaseException, after: int) -> None:
        self.error, self.after = error, after

    def clone(self, source: int, start: int, nbytes: int, target: int, to: int) -> None:
        self.after -= 1
        if self.after < 0:
            raise self.error
        super().clone(source, start, nbytes, target, to)


def test_an_interrupted_run_makes_its_clones_again(volume: Path) -> None:
    graph, _ = graph_in(volume / "three")
    output = volume / "three" / "out"
    with pytest.raises(Killed):
        run(graph, output, files=Failing(Killed(), 2))
    assert read_manifest(output) is None
    outcome = run(graph, output)
    assert outcome.clones.cloned == sum(clone.cloned_bytes for clone in possible_clones(graph))
    run(graph, volume / "three" / "whole", io=IOMode.BUFFERED)
    assert sha256(output) == sha256(volume / "three" / "whole")
    (output / "out.bin").unlink()
    again = run(graph, output)
    assert not again.was_finished
    assert sha256(output) == sha256(volume / "three" / "whole")


def test_a_refused_clone_is_an_error_and_a_refused_trial_copies(volume: Path) -> None:
    graph, _ = graph_in(volume / "four")
    with pytest.raises(RunError, match=r"cannot clone '.*': .*: fix this, and the same command"):
        run(graph, volume / "four" / "out", files=Failing(OSError(28, "no space left"), 1))
    outcome = run(graph, volume / "four" / "out", files=Failing(OSError(95, "not supported"), 0))
    assert outcome.clones == CloneBytes()
    graph_bytes = sha256(volume / "four" / "out")
    run(graph, volume / "four" / "whole", io=IOMode.DIRECT)
    assert graph_bytes == sha256(volume / "four" / "whole")


def test_clones_need_one_file_system_that_shares(volume: Path, tmp_path: Path) -> None:
    (volume / "file").write_bytes(b"x")
    assert may_share(str(volume / "file"), volume / "not" / "there" / "yet")
    assert not may_share(str(volume / "file"), tmp_path)


def test_conversions_and_small_copies_are_not_planned_as_clones(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    maker = GraphMaker(tmp_path / "in")
    loads = maker.loads(F32, [(4096,), (500,)], gap=4)
    make = maker.builder.merge
    outputs = {
        "cast": (make([loads[0]], Copy(), "cast"), BF16),
        "short": (make([loads[1]], Copy(), "short"), F32),
    }
    assert list(possible_clones(maker.graph(outputs))) == []
