"""The workflows, step by step: what a night, a pull request and a push come to, whatever goes wrong in them."""

from unittest import mock

import pytest
import yaml

from slimcore.bench.report.conclusion import Update, accept
from tests.made_up import SOFTWARE, found, make_run
from tests.runner import SUMMARY_LIMIT, WORKFLOWS, git, substituted, wanted
from tests.stand_ins import BATCHES, World

NIGHT = "baselines/h100/gpu/2026-01-02T00-00-00.json"


@pytest.fixture(scope="module")
def baselines(tmp_path_factory):
    """One accepted night of the whole grid."""
    folder = tmp_path_factory.mktemp("accepted")
    accept(found(make_run(folder / "run", BATCHES), folder), Update("first"))
    return folder / "baselines"


@pytest.fixture
def world(tmp_path, baselines):
    """See World."""
    made = World(tmp_path / "github", baselines)
    yield made
    made.github.close()


def test_a_green_night_is_one_file_in_a_pull_request(world):
    """Four parts, one report, told once; the difference is the pull request's text; `main` is as it was."""
    before = git(world.github.origin, "rev-parse", "main")
    jobs = world.nightly()
    assert {job.outcome for job in jobs.values()} == {"success"}
    assert world.changes("nightly-7") == [NIGHT]
    assert git(world.github.origin, "rev-parse", "main") == before
    assert world.artifacts() == ["part-1", "part-2", "part-3", "part-4", "report"]
    assert jobs.pop("gate").summary.count("# gpu on h100") == 1
    assert not any(job.summary for job in jobs.values())
    assert [words[:2] for words in world.asked] == [["pr", "list"], ["pr", "create"]]
    assert {"--base", "main", "--head", "nightly-7"} <= set(world.asked[-1])
    assert "Nothing moved" in world.bodies[0]


def test_a_red_night_proposes_nothing_and_keeps_its_results(world):
    """One cell is slower: its part and the gate are red, what they measured is kept, nothing is accepted."""
    world.parts[2], world.code[2] = {"factor": 0.6}, 1
    jobs = world.nightly()
    assert [name for name, job in jobs.items() if job.outcome == "failure"] == ["measure 2", "gate"]
    assert jobs["gate"].steps[-3:] == ["success", "skipped", "skipped"]
    assert "2 slower" in jobs["gate"].summary
    assert world.artifacts() == ["part-1", "part-2", "part-3", "part-4", "report"]
    assert (world.branches(), world.asked) == ([], [])


def test_a_night_that_is_accepted_already_is_green_and_proposes_nothing(world):
    """Its run is run again once its file is in `main`."""
    world.nightly()
    world.github.push("merged", {NIGHT: git(world.github.origin, "show", f"nightly-7:{NIGHT}") + "\n"})
    world.asked.clear()
    jobs = world.nightly()
    assert {job.outcome for job in jobs.values()} == {"success"}
    assert "has this night already" in jobs["gate"].log
    assert world.asked == []


def test_a_cell_that_got_faster_keeps_the_others_from_nothing(world):
    """It is told and left out; the rest of the night is accepted."""
    world.parts[3] = {"factor": 0.4}
    jobs = world.nightly()
    assert {job.outcome for job in jobs.values()} == {"success"}
    night = yaml.safe_load(git(world.github.origin, "show", f"nightly-7:{NIGHT}"))
    assert sorted(set(world.cells) - set(night["cells"])) == [
        f"llama-7b/depth-ppl:9L/i{n}-o128/m64/eager-fp16" for n in (12, 82)
    ]
    assert world.bodies[0].count("faster, left out") == 2


def test_a_cell_that_is_in_doubt_is_accepted_with_the_night(world):
    """Too noisy to show a slowdown that matters: that is told, and is one more night of it."""
    world.noisy = 3
    jobs = world.nightly()
    assert {job.outcome for job in jobs.values()} == {"success"}
    assert "4 inconclusive" in jobs["gate"].summary
    night = yaml.safe_load(git(world.github.origin, "show", f"nightly-7:{NIGHT}"))
    assert set(night["cells"]) == set(world.cells)


def test_a_report_longer_than_a_summary_may_be_is_kept_whole_beside_it(world):
    """GitHub drops what is longer, so the summary is cut; the runner here refuses one that is not."""
    with mock.patch("slimcore.bench.report.story.told", return_value="What pruning bought. " * 60_000):
        jobs = world.nightly()
    assert {job.outcome for job in jobs.values()} == {"success"}
    assert "# gpu on h100" in jobs["gate"].summary
    report = world.github.artifacts / "7" / "report" / "report.md"
    assert report.stat().st_size > SUMMARY_LIMIT


def test_a_part_that_is_missing_is_named_and_the_night_is_red(world):
    """Its machine died: the others' results are kept."""
    world.parts[3], world.code[3] = None, 137
    jobs = world.nightly()
    assert [name for name, job in jobs.items() if job.outcome == "failure"] == ["measure 3", "gate"]
    assert "parts 3/4 of --perf-shard are missing" in jobs["gate"].log
    assert world.artifacts() == ["part-1", "part-2", "part-4"]
    assert (world.branches(), world.asked) == ([], [])


def test_where_all_machines_are_down_the_gate_is_red(world):
    """Nothing measured is not green."""
    world.parts = dict.fromkeys((1, 2, 3, 4))
    world.code = dict.fromkeys((1, 2, 3, 4), 1)
    assert world.nightly()["gate"].outcome == "failure"
    assert world.asked == []


def test_a_night_that_cannot_be_accepted_is_red(world):
    """No cell is slower, but what was measured is no commit: that `accept` refuses is not lost in a pipe."""
    world.parts = {n: {"software": SOFTWARE | {"dirty": True}} for n in (1, 2, 3, 4)}
    jobs = world.nightly()
    assert jobs["gate"].steps[-4:] == ["success", "success", "failure", "skipped"]
    assert "changes that no commit holds" in jobs["gate"].log
    assert (world.branches(), world.asked) == ([], [])


def test_a_part_that_stopped_halfway_makes_the_night_red(world):
    """What it had still to measure is named."""
    lacks = "llama-7b/dense/i12-o128/m16/eager-fp16"
    world.parts[2], world.code[2] = {"cells": [*(i for i in world.cells if "/m8/" in i), lacks]}, 124
    jobs = world.nightly()
    assert jobs["gate"].outcome == "failure"
    assert lacks in jobs["gate"].log
    assert world.branches() == []


def test_parts_of_two_kinds_of_machine_are_refused(world):
    """One label was given to another kind."""
    world.parts[4] = {"machine": "a100"}
    jobs = world.nightly()
    assert jobs["gate"].outcome == "failure"
    assert "is of machine 'a100'" in jobs["gate"].log
    assert world.branches() == []


def test_each_part_is_always_measured_by_the_same_machine():
    """No two parts share a label, and none takes whichever machine is free."""
    measure = yaml.safe_load((WORKFLOWS / "nightly.yml").read_text())["jobs"]["measure"]
    labels = [substituted(measure["runs-on"], {"matrix.part": str(n)}) for n in measure["strategy"]["matrix"]["part"]]
    assert labels == [["self-hosted", f"gpu-{n}"] for n in (1, 2, 3, 4)]


def test_a_run_that_is_run_again_replaces_what_it_proposed(world):
    """The second attempt pushes to the branch that is there, and opens no second pull request."""
    world.nightly()
    world.night = 3
    jobs = world.nightly()
    assert {job.outcome for job in jobs.values()} == {"success"}
    assert world.changes("nightly-7") == [NIGHT.replace("02T", "03T")]
    assert [words[1] for words in world.asked] == ["list", "create", "list", "edit"]
    assert world.asked[-1][2] == "5"
    assert world.branches() == ["nightly-7"]


@pytest.mark.parametrize("code", [0, 1])
def test_a_pull_request_is_measured_against_its_base(world, code):
    """That is in the checkout; red or green, the report is told and kept, and nothing else."""
    world.code[1] = code
    jobs = world.github.run("pull-request.yml", GITHUB_BASE_REF="main", GITHUB_HEAD_REF="mine")
    (job,) = jobs.values()
    assert job.outcome == ("failure" if code else "success")
    assert job.summary == "measured"
    assert world.artifacts(1) == ["report"]
    assert {p.name for p in (world.github.artifacts / "1" / "report").iterdir()} == {"figure-1", "junit.xml"}


def test_a_push_is_linted_then_tested(world):
    """What lint refuses is not tested."""
    assert world.github.run("tests.yml")["tests"].outcome == "success"
    assert world.made == ["lint", "test"]
    world.code["lint"] = 1
    assert world.github.run("tests.yml")["tests"].outcome == "failure"
    assert world.made == ["lint", "test", "lint"]


def test_what_the_runner_does_not_know_is_no_pass():
    """An expression, or a condition, that is new in a workflow."""
    with pytest.raises(KeyError, match=r"github\.unknown"):
        substituted({"run": ["${{ github.unknown }}"]}, {})
    with pytest.raises(KeyError, match="failure"):
        wanted("failure()", failed=False)
