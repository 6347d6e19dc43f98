"""Weights that are not plain safetensors: torch's own files, without their code, and fp8, as what it stands for."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

import slimcore
from slimcore.errors import CheckpointError
from slimcore.models import load_meta
from tests.helpers import tiny
from tests.test_weights import BIN, WHOLE, change, logits


@pytest.fixture
def folder(tmp_path):
    """A checkpoint with a file of weights."""
    return slimcore.save(tiny(), tmp_path / "model")


def as_bin(folder, *, files=1, zipped=True):
    """Turn the file of weights into torch's own, one or more with an index."""
    weights = load_file(folder / WHOLE)
    names = sorted(weights)
    parts = {f"pytorch_model-{n}.bin": names[n::files] for n in range(files)} if files > 1 else {BIN: names}
    for file, inside in parts.items():
        table = {name: weights[name] for name in inside}
        torch.save(table, folder / file, _use_new_zipfile_serialization=zipped)
    if files > 1:
        where = {name: file for file, inside in parts.items() for name in inside}
        (folder / f"{BIN}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / WHOLE).unlink()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_files_of_torch_are_loaded_and_counted(tmp_path, files, zipped, dtype):
    """As Vicuna and LLaMA-1 have nothing else: the same logits, dtype and bytes, and what is saved is safetensors."""
    model = tiny(dtype=dtype)
    folder = slimcore.save(model, tmp_path / "model")
    as_bin(folder, files=files, zipped=zipped)
    loaded, _ = slimcore.load(folder)
    assert torch.equal(logits(loaded.float()), logits(model.float()))
    assert slimcore.footprint(load_meta(folder)) == slimcore.footprint(slimcore.load(folder)[0])
    out = slimcore.save(loaded, tmp_path / "out")
    assert (out / WHOLE).exists()
    assert not list(out.glob("*.bin"))


def test_safetensors_win_over_the_older_format(folder):
    """Many repositories hold both; whatever the older one is like, it is not read."""
    expected = logits(slimcore.load(folder)[0])
    (folder / BIN).write_bytes(b"not to be read")
    assert torch.equal(logits(slimcore.load(folder)[0]), expected)


class Trap:
    """What a pickle can do to whoever loads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_of_torch_is_never_run(folder, tmp_path, zipped):
    """Neither to load nor to count it: refused in a line."""
    as_bin(folder)
    table = {"lm_head.weight": torch.ones(2), "trap": Trap(tmp_path / "sprung")}
    torch.save(table, folder / BIN, _use_new_zipfile_serialization=zipped)
    for load in (slimcore.load, load_meta):
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin .*: it is damaged, or holds code, which is not"):
            load(folder)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))  # noqa: S301 - the trap works
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("left", [0, 10, 0.5, -100])
def test_a_file_of_torch_that_is_cut_short_is_one_line(folder, zipped, left):
    """Wherever it ends."""
    as_bin(folder, zipped=zipped)
    data = (folder / BIN).read_bytes()
    (folder / BIN).write_bytes(data[: int(left * len(data)) if left == 0.5 else left])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin .* damaged") as caught:
        slimcore.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[torch.ones(1)], {"state": {"lm_head.weight": torch.ones(1)}}, {"step": 3}])
def test_a_file_of_torch_that_is_no_table_of_weights_is_refused(folder, content):
    """A trainer's state has the same name now and then."""
    as_bin(folder)
    torch.save(content, folder / BIN)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is no table of weights"):
        slimcore.load(folder)


def test_the_head_of_a_file_of_torch_is_its_own(tmp_path):
    """Said tied, and another one in the file; both names for one matrix, as such files have it, are one."""
    model = tiny(tied=True)
    for own in (False, True):
        folder = slimcore.save(model, tmp_path / f"own-{own}")
        embedding = model.model.embed_tokens.weight.detach()
        change(folder, "lm_head.weight", embedding.flip(0) if own else embedding.clone())
        as_bin(folder, zipped=own)
        loaded, _ = slimcore.load(folder)
        assert loaded.config.tie_word_embeddings is not own
        assert torch.equal(loaded.lm_head.weight, embedding.flip(0) if own else embedding)


def in_fp8(folder, *, blocks=True, scales="_scale_inv"):
    """Store the projections in fp8, by blocks of 8 x 8 or whole; return all weights as what they stand for."""
    weights = load_file(folder / WHOLE)
    plain = dict(weights)
    for name, weight in plain.items():
        if "proj" not in name:
            continue
        rows, columns = (8, 8) if blocks else weight.shape
        parts = weight.float().view(weight.shape[0] // rows, rows, weight.shape[1] // columns, columns)
        scale = parts.abs().amax((1, 3)) / 448
        stored = (parts / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        plain[name] = (stored.float() * scale[:, None, :, None]).view(weight.shape).to(weight.dtype)
        weights[name] = stored.view(weight.shape)
        weights[name + scales] = scale if blocks else scale.squeeze()
        if not blocks:
            weights[name.replace("weight", "activation_scale")] = torch.tensor(2.0)
    save_file(weights, folder / WHOLE, metadata={"format": "pt"})
    scheme = {"weight_block_size": [8, 8] if blocks else None, "activation_scheme": "dynamic" if blocks else "static"}
    change(folder, quantization_config={"quant_method": "fp8", "modules_to_not_convert": ["lm_head"], **scheme})
    return plain


@pytest.mark.parametrize("blocks", [True, False])
def test_fp8_weights_are_loaded_as_what_they_stand_for(tmp_path, blocks):
    """In bf16, each equal to its stored value times its scale; pruned and saved, nothing of fp8 is left."""
    pytest.importorskip("accelerate")
    folder = slimcore.save(tiny(dtype=torch.bfloat16), tmp_path / "model")
    plain = in_fp8(folder, blocks=blocks)
    model, _ = slimcore.load(folder)
    assert slimcore.footprint(load_meta(folder)) == slimcore.footprint(model)
    found = model.state_dict()
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    reference = tiny(dtype=torch.bfloat16)
    reference.load_state_dict(plain)
    assert torch.equal(logits(model), logits(reference))
    slimcore.prune_(
        model, slimcore.select(slimcore.unscored(model, method="depth-magnitude"), layers=1, protect=(0, 0))
    )
    again = slimcore.save(model, tmp_path / "out")
    assert "quantization_config" not in json.loads((again / "config.json").read_text())
    assert torch.equal(logits(slimcore.load(again)[0]), logits(model))


def test_fp8_weights_whose_scales_are_called_otherwise_are_refused(tmp_path):
    """They would be loaded without, hundreds of times too large or too small."""
    folder = slimcore.save(tiny(dtype=torch.bfloat16), tmp_path / "model")
    in_fp8(folder, scales="_scale")
    for load in (slimcore.load, load_meta):
        with pytest.raises(
            CheckpointError, match=r"proj\.weight in .* is stored as F8_E4M3, with no scale that is read"
        ):
            load(folder)


def test_what_a_conversion_from_gguf_left_in_the_config_is_let_be(folder, tmp_path):
    """The weights are plain; what is saved does not say otherwise."""
    expected = logits(slimcore.load(folder)[0])
    change(folder, quantization_config={"quant_method": "gguf"})
    model, _ = slimcore.load(folder)
    assert torch.equal(logits(model), expected)
    again = slimcore.save(model, tmp_path / "out")
    assert "quantization_config" not in json.loads((again / "config.json").read_text())
    assert slimcore.footprint(load_meta(folder)) == slimcore.footprint(model)
