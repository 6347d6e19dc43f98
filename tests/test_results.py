"""A run's folder: lines that are torn, a disk that is full, and two who write."""

import random
import resource

import pytest

from slimcore.bench.records import results
from slimcore.bench.records.records import Begun
from slimcore.errors import ResultsError
from tests.made_up import make_run


def test_a_full_disk_costs_the_line_and_no_other(tmp_path):
    """At a random byte of a write: said; with room again the next lines are whole, and all others are read."""
    made = make_run(tmp_path / "run", (1, 8))
    before = results.read(made.folder)
    path = made.folder / made.file
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for _ in range(20):
        room = path.stat().st_size + random.randrange(60)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            with pytest.raises(ResultsError, match=r"cannot write to .*: make room, then --perf-resume"):
                made.append(Begun("a cell whose name is long enough to be cut off by the limit of the file", 1.5))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        made.append(Begun("after", 2.5))
    after = results.read(made.folder)
    assert after.cells == before.cells
    assert after.subjects == before.subjects
    assert after.begun["after"] == 20
    assert all(path.name in place for place in after.torn)


def test_a_line_that_is_torn_anywhere_costs_that_line(tmp_path):
    """Cut short, or with another one in it: its cell is measured again, and where it stood is told."""
    made = make_run(tmp_path / "run", (1, 8))
    path = made.folder / made.file
    lines = path.read_bytes().split(b"\n")
    for number in range(3, len(lines) - 1):
        torn = [*lines[:number], lines[number][: random.randrange(1, len(lines[number]) - 1)], *lines[number + 1 :]]
        path.write_bytes(b"\n".join(torn))
        read = results.read(made.folder)
        assert len(read.cells) == len(made.cells) - 1
        assert read.torn == [f"{path}, line {number + 1}"]


def test_one_process_writes_to_a_run(tmp_path):
    """A second is refused until the first is done."""
    run = results.create(tmp_path, "g")
    run.append(Begun("x", 1.0))
    with pytest.raises(ResultsError, match="another process is writing to"):
        results.resume(tmp_path, "latest", "g")
    run.close()
    results.resume(tmp_path, run.folder.name, "g").close()
