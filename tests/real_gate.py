"""The gate on this very machine: slimcore against itself, and with one method made slower, run after run.

    python -m tests.real_gate --runs 20                          # false alarms
    python -m tests.real_gate --runs 20 --slow depth-ppl:0.1     # how often 10 % in one method is caught

Narrow the grid as `pytest perf` does: --models, --methods, --batches, --outputs. Runs go on from where they stopped.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from tests.doubles import ROOT, copied

HERE = "REAL_GATE_COPY"  # set in the process that measures: it runs the copy


def main():
    """Measure, or start the process that does."""
    options = _options()
    if options.slow and HERE not in os.environ:
        share = float(options.slow.partition(":")[2])
        with tempfile.TemporaryDirectory() as folder:
            copy = copied(Path(folder))
            paths = os.pathsep.join([str(copy), str(ROOT)])
            slows = f"really_slower({options.layers}, {share})"  # in workers of the copy; the checkout's do not read it
            environment = os.environ | {"PYTHONPATH": paths, HERE: folder, "DOUBLES": slows}
            command = [sys.executable, "-P", "-m", "tests.real_gate", *sys.argv[1:]]
            sys.exit(subprocess.run(command, env=environment, check=False).returncode)
    measure(options)


def measure(options):
    """All runs, and what came of them."""
    from slimcore.bench.grid.grids import grid_named, load_grids
    from slimcore.bench.measure.protocol import Protocol
    from slimcore.bench.suite.lanes import Machine
    from slimcore.bench.suite.opening import Places
    from slimcore.bench.suite.session import Options, Session

    grid = grid_named(load_grids(ROOT / "perf" / "grids.toml"), options.grid)
    axes = {"models": options.models, "methods": options.methods, "outputs": options.outputs}
    grid = replace(grid.narrow(**axes, batches=options.batches), rounds=options.runs)
    slow, _, share = (options.slow or "").partition(":")
    reports = Path(options.reports)
    mode = {"against": str(ROOT)} if slow else {"aa": options.runs}
    resume = "latest" if list(reports.glob(f"{grid.name}-*/*.jsonl")) else None
    places, protocol = Places(ROOT, reports, reports), Protocol(seconds=options.seconds)
    session = Session(grid, grid.cells(), places, protocol, Machine(grid.device), Options(resume=resume, **mode))
    counts = {True: Counter(), False: Counter()}
    for cell in grid.cells():
        verdict = session.measure(cell)
        hit = bool(slow) and cell.method.startswith(slow)
        counts[hit][verdict.verdict] += 1
        print(f"{cell.id}: {verdict.message.splitlines()[0].partition(': ')[2]}", flush=True)
    session.close()
    for hit, count in counts.items():
        if count:
            print(f"{slow + ' ' + share if hit else 'unchanged'}: " + ", ".join(f"{n} {v}" for v, n in count.items()))


def _options():
    parser = argparse.ArgumentParser(prog="python -m tests.real_gate", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--slow", metavar="METHOD:SHARE", help="make this method slower by so much")
    parser.add_argument("--layers", type=int, default=22, help="of the models to be made slower (default: 22)")
    parser.add_argument("--grid", default="cpu")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--reports", default="reports/real-gate")
    for name, kind in (("models", str), ("methods", str), ("batches", int), ("outputs", int)):
        parser.add_argument(f"--{name}", type=kind, nargs="+")
    return parser.parse_args()


if __name__ == "__main__":
    main()
