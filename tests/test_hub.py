"""What is fetched from the hub: what describes a model first, then only the weights that are loaded.

The hub is a folder here, and what would be downloaded is noted.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects

import slimcore
from slimcore.errors import CheckpointError, UnsupportedModelError
from slimcore.models import load_meta
from tests.helpers import ids, tiny
from tests.test_weight_formats import as_bin

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


class Hub:
    """A repository, and what was asked of it."""

    def __init__(self, place):
        self.repo, self.cache = place / "repo", place / "cache" / COMMIT
        self.fetched, self.revisions = [], []

    def snapshot(self, repo_id, *, revision=None, allow_patterns=None):
        """As `huggingface_hub.snapshot_download` does."""
        assert repo_id == "someone/model"
        self.revisions.append(revision)
        names = [p.relative_to(self.repo).as_posix() for p in sorted(self.repo.rglob("*")) if p.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            self.fetched.append(name)
            (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.repo / name, self.cache / name)
        return str(self.cache)

    @property
    def weights(self):
        """What was fetched of them."""
        return [name for name in self.fetched if Path(name).suffix in (".safetensors", ".bin")]


@pytest.fixture
def hub(tmp_path, monkeypatch, tokenizer):
    """Holds a model in several files, all of its weights a second time, its terms, and a chat template of its own."""
    made = Hub(tmp_path)
    slimcore.save(tiny(), made.repo, tokenizer=tokenizer)
    slimcore.load(made.repo)[0].save_pretrained(made.repo, max_shard_size="40KB")
    (made.repo / "model.safetensors").unlink()
    (made.repo / "chat_template.jinja").write_text(TEMPLATE)
    for name in (
        "consolidated.safetensors",
        "original/params.json",
        "original/tokenizer.model",
        "README.md",
        "LICENSE",
    ):
        (made.repo / name).parent.mkdir(exist_ok=True)
        (made.repo / name).write_bytes(b"x")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot)
    return made


def whole(hub):
    """Put the weights of the repository into one file."""
    for path in [*hub.repo.glob("*.safetensors"), hub.repo / "model.safetensors.index.json"]:
        path.unlink()
    tiny().save_pretrained(hub.repo)


def test_counting_fetches_no_weights(hub):
    """`inspect` and a forecast ask for shapes alone, and take the dtype from the config."""
    assert slimcore.footprint(load_meta("someone/model")) == slimcore.footprint(tiny())
    assert hub.weights == []
    assert "config.json" in hub.fetched


def test_only_the_files_that_the_index_names_are_fetched_once(hub, tmp_path):
    """Not those of another format; chat template and licence come along, and are saved."""
    model, words = slimcore.load("someone/model")
    named = sorted(set(json.loads((hub.repo / "model.safetensors.index.json").read_text())["weight_map"].values()))
    assert len(named) > 2
    assert hub.weights == named
    assert not [name for name in hub.fetched if name.startswith("original/") or name == "README.md"]
    assert torch.equal(model(ids()).logits, tiny()(ids()).logits)
    out = slimcore.save(model, tmp_path / "out", tokenizer=words)
    assert slimcore.load(out)[1].chat_template == words.chat_template == TEMPLATE
    assert (out / "LICENSE").read_bytes() == b"x"


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("only", [True, False])
def test_the_older_format_is_fetched_where_there_is_no_other(hub, files, only):
    """One file or several; beside safetensors it is not."""
    whole(hub)
    weights = hub.repo / "model.safetensors"
    kept = weights.read_bytes()
    as_bin(hub.repo, files=files)
    if not only:
        weights.write_bytes(kept)
    model, _ = slimcore.load("someone/model")
    expected = sorted(p.name for p in hub.repo.glob("*.bin")) if only else ["model.safetensors"]
    assert hub.weights == expected
    assert torch.equal(model(ids()).logits, tiny()(ids()).logits)


def test_a_repository_without_weights_is_refused(hub):
    """GGUF files alone, for one."""
    whole(hub)
    (hub.repo / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"is incomplete: it has no model\.safetensors, and neither"):
        slimcore.load("someone/model")


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"model_type": "phi3"}, UnsupportedModelError, "'phi3' is not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, CheckpointError, r"quantized \(awq\)"),
    ],
)
def test_what_the_config_tells_against_is_refused_before_its_weights_are_fetched(hub, config, error, message):
    """Another family, or a quantized model."""
    path = hub.repo / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(error, match=message):
        slimcore.load("someone/model")
    assert hub.weights == []


def test_weights_are_of_the_commit_that_the_config_is_of(hub):
    """A branch may move between the two; a revision that is asked for is the one that is fetched."""
    slimcore.load("someone/model", revision="v1.1")
    assert hub.revisions[0] == "v1.1"
    assert set(hub.revisions[1:]) == {COMMIT}
    load_meta("someone/model", revision="v1.2")
    assert hub.revisions[-1] == "v1.2"
    slimcore.load("someone/model")
    assert None in hub.revisions


@pytest.mark.parametrize("name", ["tiny", "smollm2-135m", "FOLDER", "./nowhere", "unknown"])
def test_a_revision_of_what_has_none_is_refused(tmp_path, name):
    """Shapes, folders, the model of a package: it would be passed over."""
    name = str(slimcore.save(tiny(), tmp_path / "model")) if name == "FOLDER" else name
    for load in (slimcore.load, load_meta):
        with pytest.raises(CheckpointError, match=r"is no model of the hub, and a revision \(v1\) is of those"):
            load(name, revision="v1")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.GatedRepoError, r"it is gated; accept its makers' terms on its page, then log in with `hf auth login`"),
        (errors.RevisionNotFoundError, r"it has no branch, tag or commit 'v9'"),
        (errors.RepositoryNotFoundError, r"there is none, or it is private; is the id right\?"),
        (errors.LocalEntryNotFoundError, r"403 Client Error \(is the id right, and the hub reachable from here\?"),
        (ConnectionError, r"403 Client Error \(is the id right, and the hub reachable from here\?"),
    ],
)
def test_what_the_hub_refuses_is_one_line(monkeypatch, kind, message):
    """A gated model, a wrong revision, a wrong id, no network."""

    def refuse(*_, **__):
        text = "403 Client Error\n\nCannot access gated repo\nVisit the page"
        response = SimpleNamespace(headers={}, request=None)
        raise kind(text, response=response) if issubclass(kind, errors.HfHubHTTPError) else kind(text)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    for load in (slimcore.load, load_meta):
        with pytest.raises(
            CheckpointError, match=rf"^cannot get 'someone/model' from the model hub: {message}"
        ) as caught:
            load("someone/model", revision="v9")
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value.__cause__, kind)
