"""Processes of the suite killed at random moments: `python -m tests.random_kills --times 20` prints what came of it.

Of each kind (one that measures, the controller, a worker of pytest-xdist) one is killed at a random moment of a run
whose generates take a told time. What must hold: a cell that was written is never lost nor measured again, the exit
code is 0 only where every cell was measured, and going on ends with all cells and exit code 0.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from slimcore.bench.grid.cells import Cell
from tests.doubles import ROOT, copied

KINDS = ("measuring process", "controller", "xdist worker")
GRID = """
[cpu]
device = "cpu"
dtype = "fp32"
engines = ["eager"]
inputs = [3, 4]
outputs = [2, 5]
batches = [1, 2]
models = {tiny = ["dense", "depth-ppl:2L"]}
"""
CELLS = 16


def checkout(into):
    """A copy of slimcore with doubles, and a suite of one grid."""
    copied(into)
    (into / "conftest.py").write_text('pytest_plugins = ["slimcore.bench.suite.plugin"]')
    (into / "pytest.ini").write_text("[pytest]")
    (into / "perf").mkdir()
    (into / "perf" / "grids.toml").write_text(GRID)
    shutil.copy(ROOT / "perf" / "test_generation.py", into / "perf")


def start(folder, *options):
    """The suite, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(folder), "DOUBLES": "takes(0.02)", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "pytest", "perf", "-q", "--perf-seconds=0", *options]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def written(folder):
    """How often each cell is in the results, those that are errors left out."""
    lines = [x for p in folder.glob("reports/*/results*.jsonl") for x in p.read_text(errors="replace").splitlines()]
    cells = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # torn
        if record["kind"] == "cell" and record["status"] == "ok":
            cells.append(Cell(**record["cell"]).id)
    return Counter(cells)


def victim(kind, running):
    """The process to kill; None where there is none yet."""
    children = psutil.Process(running.pid).children(recursive=True)
    measuring = [p for p in children if "slimcore.bench.measure.worker" in " ".join(p.cmdline())]
    if kind == "controller":
        return psutil.Process(running.pid)
    return random.choice(([p for p in children if p not in measuring] if "xdist" in kind else measuring) or [None])


def once(kind, seconds):
    """One kill, at a moment within `seconds`; what went wrong, in words."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkout(folder)
        options = ["-n", "2"] if "xdist" in kind else []
        running = start(folder, *options)
        time.sleep(random.uniform(0.3, seconds))
        killed = None
        try:
            killed = victim(kind, running) if running.poll() is None else None
            if killed is not None:
                killed.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            killed = None
        children = psutil.Process(running.pid).children(recursive=True) if kind == "controller" and killed else []
        running.communicate()
        psutil.wait_procs(children, timeout=30)
        done = written(folder)
        faults = []
        if running.returncode == 0 and len(done) != CELLS:
            faults.append(f"exit code 0 with {len(done)} of {CELLS} cells")
        went_on = start(folder, *options, *(["--perf-resume"] if list(folder.glob("reports/*/results*")) else []))
        out, _ = went_on.communicate()
        after = written(folder)
        if went_on.returncode:
            faults.append(f"going on ended with exit code {went_on.returncode}:\n{out.decode()[-1500:]}")
        if len(after) != CELLS:
            faults.append(f"{len(after)} of {CELLS} cells after going on")
        if any(after[cell] != count for cell, count in done.items()):
            faults.append("a cell that was written was lost or measured again")
        print(f"{kind}: killed={killed is not None}, {len(done)} cells written, then {len(after)}", *faults, flush=True)
        return faults


def main():
    """All kinds, so many times."""
    parser = argparse.ArgumentParser(prog="python -m tests.random_kills", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=14.0, help="of a run, within which the kill falls")
    options = parser.parse_args()
    random.seed(options.seed)
    bad = {kind: sum(bool(once(kind, options.seconds)) for _ in range(options.times)) for kind in KINDS}
    print("; ".join(f"{kind}: {count} of {options.times} went wrong" for kind, count in bad.items()))
    sys.exit(any(bad.values()))


if __name__ == "__main__":
    main()
