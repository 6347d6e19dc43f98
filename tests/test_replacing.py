"""What is on a disk already: a checkpoint may be replaced on purpose, nothing else is ever touched."""

import errno
import json
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

import slimcore
from slimcore.errors import CheckpointError
from slimcore.files import new_folder
from slimcore.replacing import check_room, check_writable, files_to_replace
from tests.helpers import tiny


class Usage(NamedTuple):
    """Of a disk, in bytes."""

    total: int
    used: int
    free: int


def tree(folder):
    """Every file below `folder` with its bytes, every folder, every link."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else path.is_symlink()
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def checkpoint(tmp_path):
    """A folder that slimcore wrote."""
    return slimcore.save(tiny(seed=1), tmp_path / "model")


@pytest.mark.parametrize(
    "strange",
    ["src/thesis.txt", "thesis.txt", "notes.md", "train.py", ".env", "optimizer.pt", ".git/HEAD", "empty/", "x.gguf"],
)
@pytest.mark.parametrize("is_checkpoint", [True, False])
def test_a_folder_with_anything_that_is_of_no_checkpoint_is_not_replaced(tmp_path, strange, is_checkpoint):
    """Beside a checkpoint or alone, by whatever call: the first such entry is named, and nothing is touched."""
    folder = tmp_path / "model"
    if is_checkpoint:
        slimcore.save(tiny(), folder)
    if strange.endswith("/"):
        (folder / strange).mkdir(parents=True)
    else:
        (folder / strange).parent.mkdir(parents=True, exist_ok=True)
        (folder / strange).write_text("months of work")
    before = tree(tmp_path)
    name = strange.split("/")[0]
    with pytest.raises(CheckpointError, match=rf"model holds {name}, a f\w+ that is of no checkpoint: .*another"):
        slimcore.save(tiny(), folder, overwrite=True)
    with pytest.raises(CheckpointError, match=f"holds {name}"):
        check_writable(folder, overwrite=True)
    with pytest.raises(CheckpointError, match=f"holds {name}"), new_folder(folder):
        pass
    assert tree(tmp_path) == before


@pytest.mark.parametrize("config", [None, '{"server": "localhost"}', "[]", "{"])
def test_files_without_the_config_of_a_model_are_no_checkpoint(tmp_path, config):
    """Somebody's JSON is not ours to delete, whatever it is called."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.json").write_text("{}")
    if config is not None:
        (tmp_path / "data" / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"data holds a.json and no config.json of a model: only a checkpoint"):
        slimcore.save(tiny(), tmp_path / "data", overwrite=True)
    assert (tmp_path / "data" / "a.json").exists()


def test_a_checkpoint_is_replaced_whole_and_said_before(checkpoint):
    """Whatever belongs to one goes: shards, index, tokenizer, the code that config.json names, terms, a recovery."""
    extra = [
        "model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "tokenizer.model",
        "merges.txt", "vocab.txt", "chat_template.jinja", "README.md", "LICENSE.txt", "NOTICE", "USE_POLICY.md",
        ".gitattributes", "recovery.json", "recovery.png", "slimcore_plan.json", "modeling_mine.py",
    ]  # fmt: skip
    for name in extra:
        (checkpoint / name).write_bytes(b"12345")
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    told = check_writable(checkpoint, overwrite=True)
    assert told.startswith(f"the checkpoint in {checkpoint} ({len(extra) + 3} files, ")
    slimcore.save(tiny(seed=2), checkpoint, overwrite=True)
    assert sorted(p.name for p in checkpoint.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert [p.name for p in checkpoint.parent.iterdir()] == ["model"]


def test_nothing_is_said_where_nothing_is_replaced(tmp_path):
    """A new folder, and an empty one; asking leaves no trace."""
    (tmp_path / "empty").mkdir()
    for overwrite in (False, True):
        assert check_writable(tmp_path / "empty", overwrite=overwrite) is None
        assert check_writable(tmp_path / "a" / "b" / "new", overwrite=overwrite) is None
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("up", [0, 1, 2])
def test_the_folder_one_works_in_and_those_above_are_not_replaced(tmp_path, monkeypatch, up):
    """Also where they are empty, or look like a checkpoint; and `/`."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    folder = Path(*([".."] * up)) if up else Path()
    for given in (folder, [inner, *inner.parents][up], Path("/")):
        with pytest.raises(CheckpointError, match=r"is the working folder, or one above it: give a folder inside it"):
            check_writable(given, overwrite=True)
    (inner / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"is the working folder"), new_folder(Path()):
        pass
    assert (inner / "config.json").exists()


def test_a_home_and_a_mount_point_are_not_replaced(checkpoint, monkeypatch):
    """Whatever they hold."""
    monkeypatch.setenv("HOME", str(checkpoint))
    for folder in (checkpoint, checkpoint.parent):
        with pytest.raises(CheckpointError, match=r"is a home, or a folder of homes: give a folder inside it"):
            check_writable(folder, overwrite=True)
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == checkpoint)
    with pytest.raises(CheckpointError, match=r"is a mount point: give a folder inside it"):
        slimcore.save(tiny(), checkpoint, overwrite=True)
    assert slimcore.load(checkpoint)


def test_a_link_stays_and_what_it_points_to_is_judged(tmp_path, checkpoint):
    """A checkpoint behind a link is replaced where it lies; work behind a link is not; a link to nowhere is filled."""
    link, before = tmp_path / "link", (checkpoint / "model.safetensors").read_bytes()
    link.symlink_to(checkpoint)
    slimcore.save(tiny(seed=2), link, overwrite=True)
    assert link.is_symlink()
    assert (checkpoint / "model.safetensors").read_bytes() != before
    (checkpoint / "thesis.txt").write_text("months")
    with pytest.raises(CheckpointError, match=r"link holds thesis.txt"):
        slimcore.save(tiny(), link, overwrite=True)
    new = tmp_path / "new"
    new.symlink_to(tmp_path / "there" / "later")
    slimcore.save(tiny(), new)
    assert new.is_symlink()
    assert (tmp_path / "there" / "later" / "config.json").is_file()


def test_what_came_while_it_was_written_is_kept(checkpoint):
    """What is deleted is what was looked at, and no more."""
    with pytest.raises(CheckpointError, match=r"holds thesis.txt"), new_folder(checkpoint):
        (checkpoint / "thesis.txt").write_text("months")
    assert (checkpoint / "thesis.txt").read_text() == "months"
    assert [p.name for p in checkpoint.parent.iterdir()] == ["model"]


def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_place(checkpoint, monkeypatch):
    """Between the two renames nothing is lost."""
    before, replace = tree(checkpoint), Path.replace

    def refuse(self, target):
        if Path(target) == checkpoint and (self / "new.json").exists():
            raise OSError(errno.EIO, "disk gone")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="disk gone"), new_folder(checkpoint) as beside:
        (beside / "new.json").write_text("{}")
    assert tree(checkpoint) == before


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    """A file on the way; a folder that lets nobody write."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"cannot write .*file/out: .*Not a directory"):
        check_writable(tmp_path / "file" / "out", overwrite=False)

    def denied(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", denied)
    with pytest.raises(CheckpointError, match=r"cannot write .*out: .*Permission denied"):
        check_writable(tmp_path / "out", overwrite=False)


def test_a_disk_without_room_is_refused_before_the_work(tmp_path, monkeypatch):
    """Both figures are told, and nothing is written."""
    check_room(tmp_path / "a" / "b", 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12 - 5000, 5000))
    check_room(tmp_path / "out", 5000)
    with pytest.raises(CheckpointError, match=r"out takes 9\.8GB, and its disk has 5\.0kB free: make room"):
        check_room(tmp_path / "out", 9_800_000_000)
    with pytest.raises(CheckpointError, match="make room"):
        slimcore.save(tiny(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_mode_that_an_ordinary_open_gives(tmp_path, tokenizer, mask, mode):
    """All of them, the weights too."""
    before = os.umask(mask)
    try:
        folder = slimcore.save(tiny(), tmp_path / "out", tokenizer=tokenizer)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {mode}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~mask


def test_terms_of_the_makers_go_along(checkpoint, tmp_path):
    """LICENSE, NOTICE and USE_POLICY of the folder that a model came from, and no more; into its own place, too."""
    terms = {"LICENSE": "l", "LICENSE-MODEL.md": "m", "NOTICE.txt": "n", "USE_POLICY.md": "u"}
    for name, text in (terms | {"README.md": "r"}).items():
        (checkpoint / name).write_text(text)
    model, _ = slimcore.load(checkpoint)
    slimcore.prune_(
        model, slimcore.select(slimcore.unscored(model, method="depth-magnitude"), layers=1, protect=(0, 0))
    )
    for out in (tmp_path / "out", checkpoint):
        slimcore.save(model, out, overwrite=True)
        found = {path.name: path.read_text() for path in out.iterdir() if path.name in terms}
        assert found == terms
        assert not (out / "README.md").exists()
    assert len(files_to_replace(slimcore.save(tiny(), tmp_path / "made"))) == 3
