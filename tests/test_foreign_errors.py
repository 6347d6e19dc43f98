"""What other libraries raise: one line of ours with the cause kept, or, where memory ran out, what it is."""

import errno
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import slimcore
from slimcore.errors import CheckpointError, DeviceError, PlanError, SlimcoreError, is_out_of_memory, told_as

NO_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported elsewhere"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("first\nsecond"), "first"),
        (RuntimeError("\n\n  indented  \n"), "indented"),
        (KeyError(), "KeyError"),
        (ValueError(""), "ValueError"),
        (OSError(errno.ENOENT, "No such file"), "[Errno 2] No such file"),
    ],
)
def test_a_foreign_error_becomes_one_line_with_its_cause(error, reason):
    """The first line that says something, or the class; whoever looks for the cause finds it."""
    with pytest.raises(CheckpointError) as caught, told_as(CheckpointError, "x cannot be read"):
        raise error
    assert str(caught.value) == f"x cannot be read: {reason}"
    assert caught.value.__cause__ is error


def test_an_error_of_ours_passes_as_it_is():
    """It says already what is wrong; and a hint stands in brackets behind a foreign one."""
    ours = PlanError("said already")
    with pytest.raises(PlanError) as caught, told_as(CheckpointError, "x"):
        raise ours
    assert caught.value is ours
    with pytest.raises(SlimcoreError, match=r"^x: reason \(do this\)$"), told_as(CheckpointError, "x", hint="do this"):
        raise ValueError("reason")


def test_an_interruption_passes():
    """Ctrl-C is no broken file."""
    with pytest.raises(KeyboardInterrupt), told_as(CheckpointError, "x"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda e: f"{type(e).__name__}: {e}"[:40])
def test_running_out_of_memory_passes_as_it_is(error):
    """It is nobody's mistake, and callers ask for it; also where a library wraps it."""
    with pytest.raises(type(error)) as caught, told_as(CheckpointError, "x"):
        raise error
    assert caught.value is error
    assert is_out_of_memory(error)
    try:
        raise RuntimeError("could not do it") from error
    except RuntimeError as outer:
        assert is_out_of_memory(outer)


def test_other_errors_are_not_taken_for_lack_of_memory():
    """Neither by their class nor by their words."""
    for error in (RuntimeError("size mismatch"), ValueError("out of memory lane"), OSError(errno.ENOSPC, "full")):
        assert not is_out_of_memory(error)


def test_asking_about_an_error_imports_no_torch(monkeypatch):
    """Where it is not there, it raised nothing."""
    monkeypatch.delitem(sys.modules, "torch")
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError("x"))
    assert "torch" not in sys.modules


@pytest.mark.parametrize("error", [NO_MEMORY[1], ValueError("")], ids=["no memory", "no message"])
def test_what_goes_wrong_while_loading_is_told_as_what_it_is(tmp_path, monkeypatch, error):
    """A checkpoint is not broken because memory ran out, and an empty message is no riddle."""
    folder = slimcore.save(slimcore.load("tiny")[0], tmp_path / "model")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises((torch.OutOfMemoryError, CheckpointError)) as caught:
        slimcore.load(folder)
    if is_out_of_memory(error):
        assert caught.value is error
    else:
        assert str(caught.value) == f"{folder} cannot be loaded: ValueError"


@pytest.mark.parametrize("device", ["foo", "", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_here_is_refused_before_anything_else(device):
    """One line that says which there are, and nothing is looked for, let alone fetched."""
    with pytest.raises(DeviceError, match=rf"there is no device '{device}' here, only cpu") as caught:
        slimcore.load("nobody/no-such-model", device=device)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_cuda_without_a_device_is_one_line_and_exit_code_2(run):
    """Of every command that takes a device."""
    for command in (("eval", "tiny"), ("score", "tiny"), ("prune", "tiny", "--layers", 1, "--out", "nowhere")):
        code, out, err = run(*command, "--device", "cuda")
        assert (code, out) == (2, "")
        assert err.startswith("error: there is no device 'cuda' here, only cpu: ")
        assert len(err.splitlines()) == 1


def test_devices_that_are_here_are_taken():
    """As a name, as torch's own, on the meta device."""
    for device in ("cpu", torch.device("cpu"), "cpu:0", "meta"):
        model, _ = slimcore.load("tiny", device=device)
        assert {p.device.type for p in model.parameters()} == {torch.device(device).type}
