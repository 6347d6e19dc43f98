"""What `import slimcore` does to transformers: nothing but that its Auto classes know more models. In fresh processes.

Each process does much, as each must import torch: see auto_classes.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import slimcore
from slimcore.structure import FAMILIES
from tests.helpers import ids, tiny

CHECKOUT = Path(slimcore.__file__).parent.parent


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each process tells, in turn; the model is FLAP's, its layers of one width, so that only biases are odd."""
    place = tmp_path_factory.mktemp("told")
    model = tiny()
    scores = slimcore.score(model, ids(), method="flap")
    plan = slimcore.select(scores, local_ratio=0.5, allocation="UL-UM", protect=(0, 0))
    slimcore.prune_(model, plan)
    assert len(set(plan.after())) == 1
    assert slimcore.footprint(model).parameters == plan.parameters
    folder, disguised = (slimcore.save(model, place / name) for name in ("slim", "disguised"))
    config = json.loads((disguised / "config.json").read_text())
    del config["auto_map"]
    stock = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (disguised / "config.json").write_text(json.dumps(config | stock))
    torch.save(ids(), place / "ids")
    with torch.no_grad():
        torch.save(model(ids()).logits, place / "logits")
    found = {}
    for order in ("last", "first", "tool"):
        arguments = [order, folder, disguised, place / "ids", place / "logits", *FAMILIES]
        command = [sys.executable, "-m", "tests.auto_classes", *arguments]
        environment = os.environ | {"HF_MODULES_CACHE": str(place / "modules")}
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, input="n\n", env=environment, cwd=CHECKOUT
        )
        found[order] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return found


def test_transformers_gives_the_same_classes_in_any_order(told):
    """Every class of every family, its functions, what Auto classes choose, how modules are found: all but five."""
    (bare, *last), first, tool = told.values()
    assert {"LlamaForCausalLM", "Qwen3Model", "GemmaConfig", "PreTrainedModel.from_pretrained"} < set(bare["classes"])
    for other in (*last, *first, *tool):
        assert other["classes"] == bare["classes"]
        assert other["mappings"][0] == bare["mappings"][0]
        assert other["mappings"][1] == [f"slimcore_{family}" for family in FAMILIES]


def test_auto_classes_load_a_slim_folder_without_trust(told):
    """Slimcore imported last, or first, or as a tool that has loaded a model: equal logits, by its own class."""
    for part in (told["last"][1], told["first"][0], told["tool"][0]):
        assert part["auto"] == "slimcore.modeling_slimcore"


def test_importing_slimcore_imports_what_is_needed(told):
    """The modules of models come with the first config of theirs; a tool begins without torch and transformers."""
    assert told["first"][0]["models"] == []
    assert told["tool"][0]["heavy"] == []


def test_every_other_road_is_right_or_an_error(told):
    """Biases that the stock class has no place for are not dropped: neither by its name, nor by the config's."""
    bare, first = told["last"][0], told["first"][0]
    assert not bare["slimcore"]
    assert bare["trusted"].startswith("transformers_modules.")
    assert "trust_remote_code=True" in bare["auto"]
    for road in (bare["stock"], first["stock"], bare["disguised"]):
        assert "Error: " in road
        assert "intermediate_size" in road


def test_slimcore_is_imported_without_transformers_and_says_so_where_it_is_needed(tmp_path):
    """A transformers that cannot be imported is an error of what uses it, with its own words."""
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text("raise RuntimeError('built for another torch')")
    code = "import slimcore; print(slimcore.Plan.__name__); slimcore.load(PATH)".replace("PATH", repr(str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    path = os.pathsep.join(map(str, (tmp_path, CHECKOUT)))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False
    )
    assert (done.stdout, done.returncode) == ("Plan\n", 1)
    assert done.stderr.splitlines()[-1] == "RuntimeError: built for another torch"
