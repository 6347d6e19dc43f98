"""The command line as a user meets it: output, exit codes, one-line errors, help in no time."""

import subprocess
import sys
from time import perf_counter

import pytest
import torch

import slimcore
from slimcore.cli import main
from tests.helpers import ids, on_a_terminal, tiny


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line in this process; return exit code, stdout, stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["slimcore", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return call


@pytest.fixture
def model(tmp_path, tokenizer):
    """A saved model of eight layers, with its tokenizer."""
    return slimcore.save(tiny(layers=8), tmp_path / "model", tokenizer=tokenizer)


def test_help_takes_no_longer_than_python_itself():
    """`--help` imports no torch: within four bare starts of Python that import the standard library's json."""
    ratios = []
    for _ in range(5):
        times = []
        for command in (["-m", "slimcore", "--help"], ["-c", "import json, inspect, tempfile"]):
            start = perf_counter()
            done = subprocess.run([sys.executable, *command], capture_output=True, check=True)
            times.append(perf_counter() - start)
        ratios.append(times[0] / times[1])
        assert done.stderr == b""
    assert min(ratios) < 8


def test_every_command_has_help(run):
    """With its options."""
    for command in ("prune", "score", "eval", "inspect"):
        code, out, _ = run(command, "--help")
        assert code == 0
        assert "Usage" in out


def test_inspect_counts_a_model_too_large_to_hold(run):
    """The published sizes, without weights."""
    code, out, _ = run("inspect", "llama-7b", "--method", "depth-ppl", "--layers", "9")
    assert code == 0
    assert "4,916,965,376" in out
    assert "9,526,615,040" in run("inspect", "vicuna-13b", "--layers", "11")[1]
    assert "4,916,965,376" in run("inspect", "llama-7b", "--params", "4.9B")[1]
    assert "13,476,831,232" in run("inspect", "llama-7b")[1]


def test_prune_score_eval_and_replay(run, model, prose, tmp_path):
    """The whole road: what is printed is what was saved; a plan replayed gives the same model."""
    out_folder, replayed = tmp_path / "slim", tmp_path / "again"
    options = ("--layers", 2, "--protect", "1,1", "--text", prose, "--samples", 4, "--length", 32)
    code, out, err = run("prune", model, "--out", out_folder, *options)
    assert (code, err) == (0, "")
    pruned, tokenizer = slimcore.load(out_folder)
    plan = slimcore.Plan.load(out_folder / "slimcore_plan.json")
    assert "2 of 8 layers go" in out
    assert f"removed     {', '.join(map(str, plan.removed))}" in out
    assert plan.provenance["text"] == "prose.txt"
    assert plan.provenance["windows"] == [4, 32]

    code, out, _ = run("score", model, "--text", prose, "--samples", 4, "--length", 32)
    order = [int(line.split()[1]) for line in out.splitlines()[2:]]
    assert [layer for layer in order if 0 < layer < 7][:2] == sorted(plan.removed, key=order.index)

    code, out, _ = run("eval", out_folder, "--text", prose, "--limit", 1000)
    expected = slimcore.perplexity(pruned, slimcore.heldout_tokens(tokenizer, limit=1000, source=prose)).value
    assert f"perplexity {expected:.4f}" in out
    assert "no BOS" in out

    assert run("prune", model, "--plan", out_folder / "slimcore_plan.json", "--out", replayed)[0] == 0
    assert torch.equal(slimcore.load(replayed)[0](ids()).logits, pruned(ids()).logits)
    assert "2 of 8 layers go" in run("inspect", out_folder / "slimcore_plan.json")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "MODEL", "--out", "OUT", "--ratio", "1.5"], "ratio must lie between 0 and 1"),
        (["prune", "MODEL", "--out", "OUT"], "exactly one of ratio=, params=, bytes=, layers="),
        (["prune", "MODEL", "--out", "OUT", "--layers", "3"], "at most 2 may be cut"),
        (["prune", "MODEL", "--out", "OUT", "--layers", "1", "--protect", "4"], "--protect '4' is not two numbers"),
        (["prune", "MODEL", "--out", "OUT", "--params", "lots"], "'lots'"),
        (["prune", "MODEL", "--out", "OUT", "--layers", "1", "--method", "depth-tailor"], "mean 'depth-taylor'"),
        (["prune", "MODEL", "--out", "OUT", "--layers", "1", "--text", "absent.txt"], "no such text file"),
        (["prune", "MODEL", "--out", "MODEL", "--layers", "1"], "is not empty"),
        (["prune", "MODEL", "--out", "OUT", "--plan", "absent.json"], "cannot read a plan"),
        (["prune", "tiny", "--out", "OUT", "--layers", "1"], "tiny has no tokenizer"),
        (["score", "smollm3-135m"], "did you mean 'smollm2-135m'"),
        (["eval", "MODEL", "--limit", "5"], "no window at all"),
        (["inspect", "llama-7b", "--layers", "27"], "at most 26 may be cut"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(run, model, tmp_path, monkeypatch, arguments, message):
    """Naming the value and what to do."""
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": model, "OUT": tmp_path / "out"}
    before = sorted(tmp_path.rglob("*"))
    code, _, err = run(*(places.get(a, a) for a in arguments))
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_progress_is_shown_on_a_terminal_and_not_in_a_log(model):
    """A bar on a pseudo-terminal; not a byte of it where stderr is a file."""
    command = [sys.executable, "-m", "slimcore", "score", str(model), "--samples", "2", "--length", "16"]
    log = subprocess.run(command, capture_output=True, text=True, check=True)
    assert log.stderr == ""
    shown = on_a_terminal(command)
    assert "depth-ppl" in shown
    assert "0/8" in shown
