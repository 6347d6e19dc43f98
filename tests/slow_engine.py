"""A test double of the engine, read by a copy of slimcore (`copied`): slower by environment variable.

`SLOW_LAYERS=22:0.1`: models of 22 layers take 10 % longer. `FIXED_SECONDS=0.05`: no model runs; every generate takes
that long by a clock of its own, times what `SLOW_LAYERS` says, and the canary is steady. `CRASH_ONCE=FILE`: the first
generate of two rows by such a model kills its process, and leaves FILE. `OOM_ROWS=8`: so many rows, or more, are out of
memory.
"""

import os
import random
import shutil
import signal
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def copied(into):
    """A copy of slimcore below `into` whose engines are the doubles."""
    shutil.copytree(ROOT / "slimcore", into / "slimcore", ignore=shutil.ignore_patterns("__pycache__"))
    bench = into / "slimcore" / "bench"
    shutil.copy(__file__, bench / "slow_engine.py")
    for place, line in (
        (bench / "engines" / "__init__.py", "ENGINES['eager'] = doubles.double(ENGINES['eager'])"),
        (bench / "canary.py", "Canary.read = doubles.steady(Canary.read)"),
        (bench / "measure.py", "by_host = doubles.told(by_host)"),
    ):
        with place.open("a") as file:
            file.write(f"\nfrom slimcore.bench import slow_engine as doubles\n\n{line}\n")
    return into


_TOLD = []  # seconds of the generate that has just ended, where it took a fixed time


def told(host):
    """The clock `host`, or what the double says it took: a busy machine must not decide a test."""

    def clock(work, gpus):
        output, seconds = host(work, gpus)
        return output, _TOLD.pop() if _TOLD else seconds

    return clock


def steady(read):
    """The canary's `read`, or that of a machine that never changes, where generating takes a fixed time."""
    return (lambda _: [1e-3, 1e-3]) if "FIXED_SECONDS" in os.environ else read


def double(engine):
    """`engine`, made slower."""
    layers, _, share = os.environ.get("SLOW_LAYERS", "0:0").partition(":")
    fixed = float(os.environ.get("FIXED_SECONDS", "0"))
    crash = os.environ.get("CRASH_ONCE")
    most = int(os.environ.get("OOM_ROWS", "1000000"))

    def slow(model, ids, new_tokens, **options):
        chosen = model.config.num_hidden_layers == int(layers)
        if crash and chosen and len(ids) > 1 and not Path(crash).exists():
            Path(crash).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if len(ids) >= most:
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")
        start = time.perf_counter()
        if fixed:
            output = ids.new_zeros((ids.shape[0], ids.shape[1] + new_tokens))
            due = fixed
        else:
            output = engine(model, ids, new_tokens, **options)
            due = time.perf_counter() - start
        if chosen:
            due *= 1 + float(share)
        # Sleep to shortly before it is due, then wait awake: a sleep alone comes late.
        while (left := start + due - time.perf_counter()) > 0:
            if left > 2e-3:
                time.sleep(left - 1e-3)
        if fixed:
            _TOLD[:] = [due * random.uniform(1, 1.002)]
        return output

    return slow
