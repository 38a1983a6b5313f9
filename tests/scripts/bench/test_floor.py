"""The raw program moves every byte once, whatever the settings."""

import pytest

from scripts.bench import floor
from scripts.bench.floor import MIB, Settings


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("length", [0, 1, 4096, 9 * MIB + 5])
def test_requests_cover_every_byte_once(tmp_path, direct, length):
    files = [(3, length, max(length, 1)), (4, 7 * MIB, 7 * MIB)]
    requests = floor._requests(files, 4 * MIB, direct)
    for fd, size, _ in files:
        own = sorted(request.position for request in requests if request.fd == fd)
        assert own == list(range(0, size, 4 * MIB))
        assert sum(request.length for request in requests if request.fd == fd) == size


def test_repeated_reads_of_a_plan_are_repeated():
    size = 9 * MIB + 5
    requests = floor._requests([(3, size + 5 * MIB, size)], 4 * MIB, False)
    found = [(request.position, request.length) for request in requests]
    whole = [(0, 4 * MIB), (4 * MIB, 4 * MIB), (8 * MIB, MIB + 5)]
    assert found == [*whole, (0, 4 * MIB), (4 * MIB, MIB)]


@pytest.mark.parametrize("preallocate", [False, True])
@pytest.mark.parametrize("direct", [False, True])
def test_as_many_bytes_are_moved_as_requested(tmp_path, direct, preallocate, monkeypatch):
    inputs = [tmp_path / "a", tmp_path / "b"]
    inputs[0].write_bytes(b"a" * (5 * MIB + 7))
    inputs[1].write_bytes(b"b" * 3000)
    moved = {True: 0, False: 0}
    carry_out = floor._carry_out

    def counting(request, memory, is_direct):
        moved[request.writes] += request.length
        carry_out(request, memory, is_direct)

    monkeypatch.setattr(floor, "_carry_out", counting)
    try:
        settings = Settings(direct, MIB, 3, preallocate)
        floor._move(inputs, tmp_path / "out", 5 * MIB, 6 * MIB + 1, settings)
    except floor._RefusedError:
        pytest.skip("no direct requests here")
    assert (tmp_path / "out").stat().st_size == 6 * MIB + 1
    assert moved[True] == 6 * MIB + 1
    assert 5 * MIB - 2 <= moved[False] <= 5 * MIB


def test_the_command_prints_a_rate_and_removes_its_output(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(floor, "cool", lambda files: "not at all")
    (tmp_path / "a").write_bytes(bytes(MIB))
    given = ["--read", str(tmp_path / "a"), "--write", str(tmp_path / "out")]
    assert floor.main(given) == 0
    assert " MB/s (" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert floor.main(["--read", str(tmp_path / "none"), "--write", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
