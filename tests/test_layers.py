"""The layers of the code point down, and importing stays light: checked in fresh processes and on the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import slimcore

PACKAGE = Path(slimcore.__file__).parent
# Each file may import only from those before it.
ORDER = [
    "errors", "units", "devices", "replacing", "files", "validation", "budget", "scores", "kept", "plan_json",
    "picture", "plan", "target", "widths", "selection", "modeling_slimcore", "structure", "digest", "registration",
    "cost", "progress", "layerwise", "moments", "gradients", "text", "calibration", "methods", "description",
    "surgery", "quiet", "config", "weights", "fitting", "tokenizer", "checkpoint", "quality", "leastsquares",
    "refits", "trial", "healing", "hub", "models", "training", "recovery", "options", "commands",
    "inspection", "bench", "cli",
]  # fmt: skip
# And so within the performance suite, room by room; `measure.engines` is a folder.
BENCH_ORDER = [
    "statistics", "markdown",
    "grid", "grid.cells", "grid.grids", "grid.limit", "grid.forecast",
    "records", "records.records", "records.results", "records.joining",
    "measure", "measure.engines", "measure.protocol", "measure.clocks", "measure.memory", "measure.nvml",
    "measure.machine", "measure.software", "measure.canary", "measure.generation", "measure.operators",
    "measure.subject", "measure.worker",
    "judge", "judge.rules", "judge.levels", "judge.references", "judge.gate", "judge.costs", "judge.gains",
    "judge.noise", "judge.nights", "judge.baseline", "judge.judging", "judge.history", "judge.saved",
    "judge.checks",
    "report", "report.figures", "report.pareto", "report.step_summary", "report.tables", "report.story",
    "report.writing", "report.conclusion",
    "sweep", "commands",
    "suite", "suite.workers", "suite.bar", "suite.versions", "suite.lanes", "suite.turns", "suite.executor",
    "suite.opening", "suite.session", "suite.timing", "suite.items", "suite.options", "suite.planning",
    "suite.whole_run", "suite.parallel", "suite.plugin",
]  # fmt: skip
LONGEST = 250  # lines of a file


def imported(path):
    """Modules of slimcore that a source imports outside of type checking, as dotted paths below the package."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and id(node) not in typing_only
            and (node.module or "").startswith("slimcore")
        ):
            base = node.module.removeprefix("slimcore").strip(".")
            for name in (f"{base}.{alias.name}".strip(".") for alias in node.names):
                file = PACKAGE.joinpath(*name.split("."))
                yield name if base == "" or file.is_dir() or file.with_suffix(".py").exists() else base


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    """Core never imports bench, and no file imports one above it."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    room = parts[0]
    if room in ("__init__", "__main__"):
        return
    for name in imported(path):
        other = name.split(".")
        if other[0] == room == "methods":
            continue
        if other[0] == room == "bench":
            assert place(other[1:]) <= place(parts[1:]), name
        else:
            assert ORDER.index(other[0]) < ORDER.index(room), name


def place(parts):
    """Of a file in the order of the performance suite. Raises ValueError where it has none."""
    return BENCH_ORDER.index(".".join([part for part in parts if part != "__init__"][:2]))


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "bench").rglob("[!_]*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_a_file_of_the_suite_is_short_and_has_its_place(path):
    """One job each, in an order without a circle."""
    assert place(path.relative_to(PACKAGE / "bench").with_suffix("").parts) >= 0
    assert len(path.read_text().splitlines()) <= LONGEST


def light(*rooms):
    """All modules of these rooms, with commas between."""
    return ", ".join(f"slimcore.bench.{name}" for name in BENCH_ORDER if name.split(".")[0] in rooms)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("slimcore.cli", {"torch", "transformers", "rich"}),
        ("slimcore.bench.suite.plugin", {"torch", "transformers", "pandas", "matplotlib"}),
        ("slimcore.bench, slimcore.selection", {"torch", "transformers"}),
        ("slimcore.bench.statistics", {"torch", "pytest"}),
        ("slimcore.bench.judge.gate", {"torch", "pytest"}),
        (light("grid", "records", "judge", "report"), {"torch", "transformers", "pytest"}),
        (light("suite"), {"torch", "transformers"}),
    ],
)
def test_importing_stays_light(module, absent):
    """Heavy packages come in where they are used, in what runs as a tool."""
    code = f"import sys, {module}; print(*sorted({absent!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == ""


def test_the_command_line_starts_without_torch():
    """As `python -m slimcore`, too, which imports the package before it."""
    command = [sys.executable, "-X", "importtime", "-m", "slimcore", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "slimcore.cli" in imported
    assert not {"torch", "transformers"} & imported


def test_every_public_name_is_there():
    """`__all__`, the names resolved lazily, and what resolves agree."""
    assert set(slimcore.__all__) == set(slimcore._HOME) == {n for n in slimcore.__all__ if getattr(slimcore, n)}
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        slimcore.prune  # noqa: B018


def test_collecting_the_suite_imports_no_torch():
    """Where there is no device to ask for."""
    if any(Path(f"/dev/{name}").exists() for name in ("nvidiactl", "dxg", "kfd")):
        pytest.skip("torch is asked for the device that is here")
    code = "import pytest, sys; print(pytest.main(['perf', '--collect-only', '-q']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 False"
