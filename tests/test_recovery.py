"""Recovery by training: what it gains, what it leaves as it was, interruptions, and what it refuses."""

import json
import math

import pytest
import torch

import slimcore
from slimcore import recovery
from slimcore.checkpoint import PLAN_FILE
from slimcore.errors import CheckpointError, TextError
from slimcore.recovery import recover
from tests.helpers import ids, in_a_fresh_process, tiny

QUICK = {"steps": 8, "batch_size": 4, "length": 16, "learning_rate": 0.01, "every": 3}


@pytest.fixture
def text(tmp_path):
    """A text that says the same again and again."""
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat. " * 80)
    return path


@pytest.fixture
def pruned(tmp_path, tokenizer):
    """Cut a tiny model and save it with all that belongs to it; return the folder."""

    def make(method="depth-magnitude", *, ratio=0.3, **kwargs):
        model = tiny(**kwargs)
        scores = slimcore.score(model, ids(), method=method, protect=(0, 0))
        plan = slimcore.select(scores, ratio=ratio)
        return slimcore.save(slimcore.prune_(model, plan), tmp_path / "pruned", plan=plan, tokenizer=tokenizer)

    return make


@pytest.fixture
def interrupted(monkeypatch):
    """Call `recover`, and end it right after it first wrote how far it came."""

    def call(*arguments, **options):
        write = recovery._write_state

        def once(*state):
            write(*state)
            raise KeyboardInterrupt

        monkeypatch.setattr(recovery, "_write_state", once)
        with pytest.raises(KeyboardInterrupt):
            recover(*arguments, **options)
        monkeypatch.setattr(recovery, "_write_state", write)

    return call


def perplexity(folder, text):
    """Of a folder's model, on the text it was trained on."""
    model, tokenizer = slimcore.load(folder)
    return slimcore.perplexity(model, slimcore.heldout_tokens(tokenizer, length=16, source=text)).value


def logits(folder):
    """Of a folder's model, on the tokens that all these tests use."""
    with torch.no_grad():
        return slimcore.load(folder)[0](ids()).logits


def unchanged(before, after):
    """Whether two folders have the same config, plan and weights by name, shape and dtype."""
    configs = [json.loads((folder / "config.json").read_text()) for folder in (before, after)]
    plans = [slimcore.Plan.load(folder / PLAN_FILE).unhealed() for folder in (before, after)]
    models = [slimcore.load(folder)[0] for folder in (before, after)]
    weights = [{name: (w.shape, w.dtype) for name, w in model.state_dict().items()} for model in models]
    counts = [slimcore.footprint(model) for model in models]
    return all(a == b for a, b in (configs, plans, weights, counts)) and type(models[0]) is type(models[1])


def test_the_loss_goes_down_and_a_stock_checkpoint_stays_one(tmp_path, pruned, text):
    """Nothing but the weights' values changes; a process without slimcore computes the same."""
    before, random = pruned(), torch.get_rng_state()
    result = recover(before, tmp_path / "out", text=text, **QUICK | {"steps": 30})
    assert result.steps == len(result.losses) == 30
    assert sum(result.losses[-5:]) < 0.7 * sum(result.losses[:5])
    assert perplexity(tmp_path / "out", text) < 0.5 * perplexity(before, text)
    assert unchanged(before, tmp_path / "out")
    assert torch.equal(in_a_fresh_process(tmp_path / "out", tmp_path), logits(tmp_path / "out"))
    assert torch.equal(torch.get_rng_state(), random)
    names = {path.name for path in tmp_path.iterdir()} - {"ids", "logits", "modules"}
    assert names == {"out", "pruned", "text.txt"}


def test_the_curve_goes_along(tmp_path, pruned, text):
    """As numbers, with what the run was, and as a picture."""
    result = recover(pruned(), tmp_path / "out", text=text, **QUICK)
    report = json.loads((tmp_path / "out" / "recovery.json").read_text())
    assert (report["losses"], report["seconds"]) == (result.losses, result.seconds)
    assert report["text"]["text"] == "text.txt"
    assert {name: report[name] for name in QUICK if name != "every"}.items() < QUICK.items()
    assert (tmp_path / "out" / "recovery.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
def test_layers_of_different_widths_with_biases_and_ties_are_recovered(tmp_path, pruned, text, family):
    """Their class, their widths and their biases stay."""
    before = pruned("flap", family=family, tied=True, **({"bias": True} if family == "llama" else {}))
    recover(before, tmp_path / "out", text=text, **QUICK)
    assert unchanged(before, tmp_path / "out")
    assert type(slimcore.load(tmp_path / "out")[0]).__name__.startswith("Slim")
    assert perplexity(tmp_path / "out", text) < perplexity(before, text)


def test_half_precision_is_trained_in_float32_and_stays_half(tmp_path, pruned, text):
    """A learning rate that is lost in bfloat16 still moves the loss."""
    before = pruned(dtype=torch.bfloat16)
    result = recover(before, tmp_path / "out", text=text, **QUICK)
    assert unchanged(before, tmp_path / "out")
    assert result.losses[-1] < result.losses[0]


def test_an_interrupted_recovery_ends_as_one_that_was_not(tmp_path, pruned, text, interrupted, monkeypatch):
    """The same losses and weights; what was done is not done again; what it kept is no pickle, and goes."""
    before, work = pruned(), tmp_path / ".out.recovering"
    whole = recover(before, tmp_path / "whole", text=text, **QUICK)
    interrupted(before, tmp_path / "out", text=text, **QUICK)
    assert [path.name for path in work.iterdir()] == ["state.safetensors"]
    assert not (tmp_path / "out").exists()
    taken, step = [], recovery.Training.step_
    monkeypatch.setattr(recovery.Training, "step_", lambda *arguments: (taken.append(1), step(*arguments)))
    # What changes no loss may change.
    result = recover(before, tmp_path / "out", text=text, **QUICK | {"every": 2})
    assert len(taken) == QUICK["steps"] - QUICK["every"]
    assert result.losses == whole.losses
    assert torch.equal(logits(tmp_path / "out"), logits(tmp_path / "whole"))
    assert not work.exists()


def test_training_that_is_done_is_kept_where_writing_fails(tmp_path, pruned, text, monkeypatch):
    """A full disk costs no step, and leaves no half folder."""
    before, draw = pruned(), recovery._draw

    def full(*_):
        raise OSError("no space")

    monkeypatch.setattr(recovery, "_draw", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*out.*: no space"):
        recover(before, tmp_path / "out", text=text, **QUICK)
    monkeypatch.setattr(recovery, "_draw", draw)
    assert {path.name for path in tmp_path.iterdir()} == {"pruned", "text.txt", ".out.recovering"}
    monkeypatch.setattr(recovery.Training, "step_", None)
    assert len(recover(before, tmp_path / "out", text=text, **QUICK).losses) == QUICK["steps"]


def test_other_arguments_do_not_go_on_from_an_interrupted_recovery(tmp_path, pruned, text, interrupted):
    """The error names what differs, and how to start anew; so do another text and another model."""
    before, out = pruned(), tmp_path / "out"
    interrupted(before, out, text=text, **QUICK)
    with pytest.raises(CheckpointError) as caught:
        recover(before, out, text=text, **QUICK | {"rank": 4, "steps": 9})
    message = str(caught.value)
    assert f"{tmp_path / '.out.recovering'} holds" in message
    assert "with steps=8, rank=8, this one has steps=9, rank=4: " in message
    assert "delete that folder to start anew" in message
    assert "\n" not in message
    text.write_text(text.read_text().replace("cat", "dog"))
    with pytest.raises(CheckpointError, match="with text_sha256="):
        recover(before, out, text=text, **QUICK)
    text.write_text(text.read_text().replace("dog", "cat"))
    model, tokenizer = slimcore.load(before)
    model.lm_head.weight.data *= 1.01
    slimcore.save(model, before, tokenizer=tokenizer, overwrite=True)
    with pytest.raises(CheckpointError, match="with weights_sha256="):
        recover(before, out, text=text, **QUICK)


def test_a_damaged_state_is_named(tmp_path, pruned, text, interrupted):
    """With the folder to delete."""
    before = pruned()
    interrupted(before, tmp_path / "out", text=text, **QUICK)
    state = tmp_path / ".out.recovering" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cannot go on from .*state.safetensors: .*; delete .* to start anew"):
        recover(before, tmp_path / "out", text=text, **QUICK)


def test_a_loss_that_is_not_finite_ends_it(tmp_path, pruned, text):
    """At that step, with nothing left behind."""
    with pytest.raises(CheckpointError, match=r"step 2 has loss nan .* must be finite: .* lower learning rate"):
        recover(pruned(), tmp_path / "out", text=text, **QUICK | {"learning_rate": 1e30, "every": 1})
    assert {path.name for path in tmp_path.iterdir()} == {"pruned", "text.txt"}


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"steps": 0}, CheckpointError, r"steps must be 1 or more .* \(got 0\)"),
        ({"batch_size": 0}, CheckpointError, r"batch_size must be 1 or more .* \(got 0\)"),
        ({"rank": -1}, CheckpointError, r"rank must be 1 or more .* \(got -1\)"),
        ({"every": 0}, CheckpointError, r"every must be 1 or more .* \(got 0\)"),
        ({"learning_rate": 0.0}, CheckpointError, r"learning rate must be a number above 0, as 1e-4 \(got 0\)"),
        ({"learning_rate": math.nan}, CheckpointError, r"learning rate must .* \(got nan\)"),
        ({"length": 0}, TextError, "length asks for no window at all"),
        ({"length": 1}, TextError, "T of 2 or more"),
        ({"length": 600}, TextError, r"text.txt gives 3 windows of 600 tokens, 4 were asked: use a longer text"),
        ({"text": "none.txt"}, TextError, "no such text file: none.txt"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_work(tmp_path, pruned, text, wrong, error, message):
    """Value, expectation, remedy; no folder is left."""
    with pytest.raises(error, match=message):
        recover(pruned(), tmp_path / "out", **{"text": text} | QUICK | wrong)
    assert {path.name for path in tmp_path.iterdir()} == {"pruned", "text.txt"}


def test_folders_that_do_not_serve_are_refused(tmp_path, pruned, text):
    """No model, a model without a tokenizer, a place that is taken, or that cannot be written."""
    before, bare = pruned(), slimcore.save(tiny(), tmp_path / "bare")
    with pytest.raises(CheckpointError, match=r"bare has no tokenizer, .*: save the model with its own"):
        recover(bare, tmp_path / "out", text=text, **QUICK)
    with pytest.raises(CheckpointError, match="no such folder"):
        recover(tmp_path / "nothing", tmp_path / "out", text=text, **QUICK)
    with pytest.raises(CheckpointError, match="bare is not empty"):
        recover(before, bare, text=text, **QUICK)
    with pytest.raises(CheckpointError, match=r"cannot write .*text.txt"):
        recover(before, text / "out", text=text, **QUICK)


def test_a_folder_can_be_recovered_in_its_place(tmp_path, pruned, text):
    """On purpose only; the old weights stay until the new ones are whole."""
    before = pruned()
    worse = perplexity(before, text)
    recover(before, before, text=text, overwrite=True, **QUICK)
    assert perplexity(before, text) < worse
    assert {path.name for path in tmp_path.iterdir()} == {"pruned", "text.txt"}


def test_missing_packages_are_named(tmp_path, pruned, text, monkeypatch):
    """With the extra that brings them."""
    monkeypatch.setattr(recovery, "find_spec", lambda name: None if name == "peft" else name)
    with pytest.raises(CheckpointError, match=r"recovery needs peft: pip install 'slimcore\[recover\]'"):
        recover(pruned(), tmp_path / "out", text=text, **QUICK)


def test_every_window_comes_once_before_one_comes_again():
    """In an order that the seed alone decides, the number of steps only cutting it."""
    order = recovery.order_of(7, 10, 4, seed=3)
    flat = order.flatten().tolist()
    assert all(sorted(flat[i : i + 7]) == list(range(7)) for i in range(0, 35, 7))
    assert torch.equal(recovery.order_of(7, 5, 4, seed=3), order[:5])
    assert not torch.equal(recovery.order_of(7, 10, 4, seed=4), order)


@pytest.mark.parametrize("steps", [1, 2, 15, 5000])
def test_the_learning_rate_goes_up_then_down_and_is_never_zero(steps):
    """A warm-up of a tenth, 100 steps at most; the highest is the rate itself."""
    rates = [recovery.rate_at(step, steps) for step in range(steps)]
    top = min(100, steps // 10)
    assert max(rates) == rates[top] == 1
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)
    assert min(rates) > 0


def test_from_the_command_line(run, pruned, text, tmp_path):
    """What it gained is said, the model is written, and a text it was trained on is named when measured on."""
    folder, out = pruned(), tmp_path / "recovered"
    asked = ("recover", folder, "--out", out, "--text", text, "--length", 16, "--learning-rate", 0.01)
    code, printed, err = run(*asked, "--steps", 8, "--batch-size", 4)
    assert (code, err) == (0, "")
    losses = json.loads((out / "recovery.json").read_text())["losses"]
    assert f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in 8 steps" in printed
    warned = run("eval", out, "--text", text, "--length", 16)[2]
    assert "warning: text.txt is what the model was calibrated on" in warned
    assert run("eval", folder, "--text", text, "--length", 16)[2] == ""
    assert "is not empty" in run(*asked)[2]
