"""The command line as a user meets it: output, exit codes, one-line errors, help in no time."""

import subprocess
import sys
from time import perf_counter

import pytest
import torch

import slimcore
from tests.helpers import ids, on_a_terminal, tiny


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
    for command in ("prune", "score", "recover", "eval", "inspect", "sweep"):
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
    assert "4,907,642,880" in run("inspect", "llama-7b", "--method", "llm-pruner", "--local-ratio", "0.35")[1]
    assert "9,499,996,160" in run("inspect", "vicuna-13b", "--method", "flap", "--params", "9.5e9")[1]
    assert (
        "28.27% of block parameters" in run("inspect", "llama-7b", "--method", "llm-pruner", "--bytes", "9815285760")[1]
    )


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
    assert plan.steps[0].scored["text"] == "prose.txt"
    assert plan.steps[0].scored["windows"] == [4, 32]

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


def test_depth_then_width_is_one_plan(run, model, prose, tmp_path):
    """A plan is replayed and the method goes on from there; what is saved is both, and is compared with the first."""
    first, both, again = tmp_path / "depth", tmp_path / "both", tmp_path / "again"
    text = ("--text", prose, "--samples", 4, "--length", 32)
    assert run("prune", model, "--out", first, "--layers", 1, "--protect", "1,1", *text)[0] == 0
    plan = first / "slimcore_plan.json"
    code, out, err = run("prune", model, "--out", both, "--plan", plan, "--method", "flap", "--ratio", "0.2", *text)
    assert (code, err) == (0, "")
    assert "depth-ppl: 1 of 8 layers go" in out
    assert "flap: 20" in out
    composed = slimcore.Plan.load(both / "slimcore_plan.json")
    assert composed.method == "depth-ppl, then flap"
    assert run("prune", model, "--out", again, "--plan", both / "slimcore_plan.json")[0] == 0
    with torch.no_grad():
        one, other = (slimcore.load(folder)[0](ids()).logits for folder in (both, again))
    assert torch.allclose(one, other, rtol=1e-4, atol=1e-4 * float(one.abs().max()))
    code, out, _ = run("inspect", both / "slimcore_plan.json", "--against", plan)
    assert code == 0
    assert "parameters cut by both" in out
    assert "by depth-ppl alone 0" in out


def test_scores_inside_layers_are_a_line_a_layer(run, model, prose):
    """Lowest, median, highest of each kind; layers that need no gradients are named."""
    code, out, _ = run("score", model, "--method", "llm-pruner", "--text", prose, "--samples", 2, "--length", 16)
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "llm-pruner on prose.txt; low goes first"
    assert len(lines) == 2 + 8
    assert sum("protected: not scored" in line for line in lines) == 6
    figures = [float(word) for word in lines[2 + 4].split()]
    assert figures[0] == 4
    assert figures[1] <= figures[2] <= figures[3]
    assert figures[4] < figures[5] < figures[6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "MODEL", "--out", "OUT", "--method", "flap", "--ratio", "0.99"], "but at most"),
        (["prune", "MODEL", "--out", "OUT", "--method", "flap", "--ratio", "0.2", "--multiple-of", "64"],
         "multiple_of=64 cannot be met: layer 0 has"),
        (["prune", "MODEL", "--out", "OUT", "--method", "flap", "--ratio", "0.2", "--metric", "WIVF"], "mean 'WIFV'"),
        (["prune", "MODEL", "--out", "OUT", "--method", "flap", "--ratio", "0.2", "--allocation", "AL"],
         "unknown allocation 'AL'"),
        (["prune", "MODEL", "--out", "OUT", "--method", "llm-pruner", "--local-ratio", "0.999"], "would leave no"),
        (["prune", "MODEL", "--out", "OUT", "--method", "flap", "--layers", "1"], "flap cuts inside layers"),
        (["prune", "MODEL", "--out", "OUT", "--bytes", "lots"], "--bytes 'lots' is not a number of bytes"),
        (["inspect", "llama-7b", "--against", "x.json"], "compares two plans"),
        (["inspect", "llama-7b", "--method", "llm-pruner", "--ratio", "0.95"], "protected layers stay whole"),
        (["prune", "MODEL", "--out", "OUT", "--ratio", "1.5"], "ratio must lie between 0 and 1"),
        (["prune", "MODEL", "--out", "OUT"], "exactly one of ratio=, params=, bytes=, layers="),
        (["prune", "MODEL", "--out", "OUT", "--layers", "3"], "at most 2 may be cut"),
        (["prune", "MODEL", "--out", "OUT", "--layers", "1", "--protect", "4"], "--protect '4' is not two numbers"),
        (["prune", "MODEL", "--out", "OUT", "--params", "lots"], "'lots'"),
        (["prune", "MODEL", "--out", "OUT", "--params", "inf"], "--params 'inf' is not a number of parameters"),
        (["prune", "MODEL", "--out", "OUT", "--ratio", "0.03", "--protect", "0,0"],
         "ratio=0.03 cuts nothing: one layer is 0.125 of the block parameters; ask for at least 0.0625"),
        (["eval", "MODEL", "--length", "300", "--limit", "600"], "longer than the model's context of 256"),
        (["inspect", "llama-7b", "--revision", "main"], "revision"),
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


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
@pytest.mark.parametrize("command", ["prune", "score", "eval", "sweep", "recover"])
def test_a_device_that_is_not_here_is_refused_before_anything_is_read(run, tmp_path, command, device):
    """With those that are; in every command that takes one."""
    where = () if command in ("score", "eval") else ("--out", tmp_path / "out")
    cut = ("--layers", "1") if command == "prune" else ()
    (tmp_path / "model").mkdir()
    code, _, err = run(command, tmp_path / "model", *where, *cut, "--device", device)
    assert code == 2
    assert err.startswith(f"error: there is no device '{device}' here, only cpu")
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError()])
def test_memory_that_runs_out_is_one_line_and_no_broken_checkpoint(run, model, monkeypatch, error):
    """While a model is loaded, or later."""

    def fails(*_args, **_kwargs):
        raise error

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fails)
    code, _, err = run("eval", model)
    assert code == 2
    assert err.startswith(f"error: out of memory: {str(error) or 'MemoryError'}; free some, or take a smaller model")
    assert err.count("\n") == 1


def test_force_replaces_a_checkpoint_and_says_so_and_nothing_else(run, model, tmp_path):
    """A project of the user's is left as it is, and so is a checkpoint without --force."""
    project, out = tmp_path / "project", tmp_path / "out"
    (project / "src").mkdir(parents=True)
    thesis = project / "src" / "thesis.txt"
    thesis.write_text("years of work")
    cut = ("--method", "depth-magnitude", "--layers", 1, "--protect", "1,1")
    code, _, err = run("prune", model, "--out", project, *cut, "--force")
    assert code == 2
    assert "holds src, a folder that is of no checkpoint" in err
    assert thesis.read_text() == "years of work"
    assert run("prune", model, "--out", out, *cut)[0] == 0
    assert "is not empty" in run("prune", model, "--out", out, *cut)[2]
    code, told, _ = run("prune", model, "--out", out, *cut, "--force")
    assert code == 0
    assert f"saved: {out} (in place of the checkpoint in {out} (" in told


def test_a_plan_meets_the_weights_it_was_made_for_or_it_is_told(run, model, tmp_path, tokenizer):
    """One line, and the cut is made: a plan of a base model may be meant for its fine-tuned copies."""
    first, plan = tmp_path / "first", tmp_path / "first" / "slimcore_plan.json"
    assert run("prune", model, "--out", first, "--method", "depth-magnitude", "--layers", 1, "--protect", "1,1")[0] == 0
    assert run("prune", model, "--plan", plan, "--out", tmp_path / "same")[2] == ""
    other = slimcore.save(tiny(layers=8, seed=1), tmp_path / "other", tokenizer=tokenizer)
    code, _, err = run("prune", other, "--plan", plan, "--out", tmp_path / "else")
    assert code == 0
    assert err.startswith("warning: the plan was made for other weights")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [("score",), ("eval",), ("prune", "--layers", 1, "--protect", "1,1")])
def test_bos_is_as_the_tokenizer_has_it_unless_told(run, model, tmp_path, prose, arguments, monkeypatch):
    """The same option in every command; what was done is what was asked."""
    seen = []
    plain = slimcore.calibration._tokens
    monkeypatch.setattr("slimcore.calibration._tokens", lambda *a: seen.append(plain(*a)) or seen[-1])
    options = ("--out", tmp_path / "out", "--force") if arguments[0] == "prune" else ()
    windows = ("--limit", 256) if arguments[0] == "eval" else ("--samples", 2, "--length", 16)
    for asked, has in (((), False), (("--bos",), True), (("--no-bos",), False)):
        assert run(arguments[0], model, *arguments[1:], *options, *windows, "--text", prose, *asked)[0] == 0
        assert seen[-1].bos == has


def test_progress_is_shown_on_a_terminal_and_not_in_a_log(model):
    """A bar on a pseudo-terminal; not a byte of it where stderr is a file."""
    command = [sys.executable, "-m", "slimcore", "score", str(model), "--samples", "2", "--length", "16"]
    log = subprocess.run(command, capture_output=True, text=True, check=True)
    assert log.stderr == ""
    shown = on_a_terminal(command)
    assert "depth-ppl" in shown
    assert "0/8" in shown
