"""Grids as data: reading, narrowing, and the ids of cells."""

from dataclasses import replace
from pathlib import Path

import pytest

from slimcore.bench.grid.cells import Cell, parse_method
from slimcore.bench.grid.grids import grid_named, load_grids
from slimcore.errors import BudgetError, ResultsError, UnknownNameError

GRIDS = Path(__file__).parent.parent / "perf" / "grids.toml"


def test_the_default_grid_is_small_and_its_ids_read():
    """The cells of the CPU, dense before pruned, small batches first."""
    ids = [cell.id for cell in load_grids(GRIDS)["cpu"].cells()]
    assert ids[0] == "smollm2-135m/dense/i12-o8/m1/eager-fp32"
    assert ids[-1] == "smollm2-135m/flap:106.2M/i12-o8/m8/eager-fp32"
    assert len(set(ids)) == len(ids) == 12


def test_the_figure_is_the_published_one():
    """Two models, four methods, eight panels, eight batches; its mini keeps layers and methods."""
    grids = load_grids(GRIDS)
    assert len(grids["figure"].cells()) == 256
    assert len(grids["figure-mini"].cells()) == 128
    assert parse_method("llm-pruner:0.35local") is not None


def test_another_protocol_is_another_cell():
    """So that its times are never compared with those of the default."""
    (cell,) = replace(load_grids(GRIDS)["cpu"].narrow(methods=["dense"], batches=[1]), protocol="paper").cells()
    assert cell.id == "smollm2-135m/dense/i12-o8/m1/eager-fp32-paper"


def test_each_subject_comes_in_one_stretch():
    """So that a model is built once."""
    for grid in load_grids(GRIDS).values():
        subjects = [cell.subject for cell in grid.cells()]
        stretches = [s for before, s in zip([None, *subjects], subjects, strict=False) if s != before]
        assert len(stretches) == len(set(stretches))


def test_a_method_is_read_with_its_budget_and_multiple():
    """A ratio, a local ratio, bytes; aligned or not; and its name in figures."""
    assert parse_method("dense") is None
    cut = parse_method("flap:4.9Bx64")
    assert (cut.method.name, cut.budget.params, cut.multiple_of, cut.label) == ("flap", 4_900_000_000, 64, "FLAP x64")
    assert parse_method("llm-pruner:0.35local").budget.local_ratio == 0.35
    assert parse_method("wanda-sp:9.8GB").label == "Wanda-sp"
    healed = parse_method("depth-ppl+heal:9L")
    assert (healed.method.name, healed.heal, healed.label) == ("depth-ppl", True, "Ours, healed")


def test_narrowing_replaces_axes():
    """By value; a method by its name as the grid has it; a model that is new takes the grid's methods."""
    grid = load_grids(GRIDS)["figure"].narrow(models=["vicuna-13b", "./mine"], methods=["depth-ppl"], batches=[1, 7])
    assert grid.models == {"vicuna-13b": ("depth-ppl:11L",), "./mine": ("depth-ppl:9L",)}
    assert (grid.batches, grid.inputs) == ((1, 7), (12, 82))
    assert load_grids(GRIDS)["cpu"].narrow(methods=["dense", "depth-taylor:0.2"]).models == {
        "smollm2-135m": ("dense", "depth-taylor:0.2")
    }
    assert load_grids(GRIDS)["cpu"].narrow(methods=["depth-ppl", "depth-ppl+heal"]).models == {
        "smollm2-135m": ("depth-ppl:106.2M", "depth-ppl+heal:106.2M")
    }


def test_unknown_names_are_answered_with_the_nearest():
    """Grids and methods alike; a method without a budget asks for one."""
    grids = load_grids(GRIDS)
    with pytest.raises(
        UnknownNameError, match=r"unknown grid 'figura'; did you mean 'figure'\? .known: cpu, cpu-aligned, engines, fig"
    ):
        grid_named(grids, "figura")
    with pytest.raises(UnknownNameError, match="did you mean 'depth-taylor'"):
        grids["cpu"].narrow(methods=["depth-tailor:0.2"])
    with pytest.raises(ResultsError, match=r"as in depth-taylor:0\.27"):
        grids["cpu"].narrow(methods=["depth-taylor"])


GOOD = """
[g]
device = "cpu"
dtype = "fp32"
engines = ["eager"]
inputs = [1]
outputs = [1]
batches = [1]
models = {tiny = ["dense"]}
"""


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (("[g]", "[g"), ResultsError),
        (("inputs = [1]\n", ""), ResultsError),
        (("inputs = [1]", "inputs = [0]"), ResultsError),
        (("inputs = [1]", "inputs = []"), ResultsError),
        (('"cpu"', '"tpu"'), UnknownNameError),
        (('"fp32"', '"fp23"'), UnknownNameError),
        (('"dense"', '"sparse"'), UnknownNameError),
        (('"dense"', '"depth-ppl"'), BudgetError),
        (('"dense"', '"depth-ppl:2"'), BudgetError),
        (('"dense"', '"flap:0.2x"'), BudgetError),
        (('"dense"', '"flap:0.2x0"'), BudgetError),
    ],
)
def test_a_malformed_grid_is_refused(tmp_path, change, error):
    """With its file's name or the value at fault."""
    path = tmp_path / "grids.toml"
    path.write_text(GOOD)
    assert len(load_grids(path)["g"].cells()) == 1
    path.write_text(GOOD.replace(*change))
    with pytest.raises(error):
        load_grids(path)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"model": "models/Größe [1] | 大", "method": "depth-ppl+heal:9L"},
        {"round": 3, "protocol": "paper"},
        {"engine": "a-b", "dtype": "bf16"},
    ],
)
def test_a_cell_is_found_again_by_its_id(change):
    """Whatever its model's folder is called."""
    cell = replace(Cell("org/model", "flap:0.27x64", 12, 128, 8, "eager", "fp16", "cuda"), **change)
    assert Cell.of_id(cell.id, "cuda") == cell
    with pytest.raises(ResultsError, match="is no id of a cell"):
        Cell.of_id(cell.id.replace("/m8", ""), "cuda")
