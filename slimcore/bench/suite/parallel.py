"""Several pytest-xdist workers: each has its own GPU, or its own cores, and whole subjects to measure."""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping

from xdist.scheduler import LoadScopeScheduling

from slimcore.bench.measure.environment import cores
from slimcore.errors import ResultsError

_CELL = re.compile(r"\[(.+)/i\d+-o\d+/m\d+/[^/]+\]$")


class BySubject(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out all cells of a model and method together, so that it is built once; other tests one by one."""

    def _split_scope(self, nodeid: str) -> str:
        cell = _CELL.search(nodeid)
        return cell[1] if cell else nodeid


def free_slot(taken: MutableMapping[str, int], worker: str) -> int:
    """The lowest number no living worker has, given to `worker`: one that replaces a crashed one takes its place."""
    taken[worker] = next(n for n in range(len(taken) + 1) if n not in taken.values())
    return taken[worker]


def own_gpu(slot: int) -> None:
    """Let this process see one GPU; to be called before CUDA is. None is left where there are fewer than workers."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    mine = visible.split(",")[slot : slot + 1] if visible else [str(slot)]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)


def own_cores(slot: int, workers: int) -> None:
    """Keep this process, and those it starts, on its share of the cores. Raises ResultsError where that is none."""
    import torch

    every = cores()
    mine = every[len(every) * slot // workers : len(every) * (slot + 1) // workers]
    if not mine:
        raise ResultsError(f"-n {workers} on {len(every)} cores: times of cells that share a core say nothing; use -n"
                           f" {len(every)} or less")  # fmt: skip
    os.sched_setaffinity(0, mine)
    os.environ["OMP_NUM_THREADS"] = str(len(mine))
    torch.set_num_threads(len(mine))
