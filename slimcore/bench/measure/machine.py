"""The machine, as a stable key for baselines: hardware only, from fields that do not jitter."""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
import sys
from functools import cache
from pathlib import Path


def machine_key(device: str, share: int = 1, devices: str | None = None) -> str:
    """No clocks, no software versions.

    `amd-epyc-25-1-2c`: CPU model, its family and model number, the cores that this process may use; `share` of how many
    processes that measure at once, where they are several (they share memory's bandwidth, so that their times are of
    another machine). `nvidia-h200-140gb-x1-on-amd-epyc-25-1`: a GPU's host launches what it does, so it is part of the
    machine; `devices` as in `gpus`.
    """
    if device == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(0)
        size = memory_size(properties.total_memory / 2**30)
        return _slug(f"{properties.name} {size}gb x{gpus(devices)} on {_cpu()}")
    several = f" of {share}" if share > 1 else ""
    return _slug(f"{_cpu()} {threads()}c{several}")


def memory_size(gib: float) -> int:
    """The size that a GPU is sold with, by what its driver reports, which differs by some tenths of a GiB."""
    step = 4 if gib > 16 else 2
    return step * round(gib / step)


def cores() -> list[int]:
    """The cores this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def threads() -> int:
    """How many threads can run at once: the cores, or what a container's quota leaves of them."""
    allowed = quota()
    return len(cores()) if allowed is None else max(1, min(len(cores()), math.ceil(allowed)))


def quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs that the cgroup (version 2) of this process allows; None where it does not limit them."""
    try:
        group = Path("/proc/self/cgroup").read_text(encoding="ascii").rpartition("::")[2].strip()
        folders = [root / group.strip("/"), *(root / group.strip("/")).parents]
    except OSError:
        return None
    allowed = []
    for folder in folders:
        try:
            limit, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        except (OSError, ValueError):
            continue
        if limit != "max":
            allowed.append(int(limit) / int(period))
    return min(allowed, default=None)


def own_gpu(slot: int, visible: str | None) -> str:
    """CUDA_VISIBLE_DEVICES of the `slot`-th of several processes, where it is `visible` for all of them.

    Unset (None): all GPUs. Empty where there are fewer than processes, or none is allowed.
    """
    if visible is None:
        return str(slot)
    allowed = [name.strip() for name in visible.split(",")]
    return "" if "-1" in allowed else "".join(allowed[slot : slot + 1])


@cache
def has_cuda() -> bool:
    """Whether a CUDA device is here: asked in a process of its own, and not at all without a driver."""
    if sys.platform == "linux" and not any(Path(f"/dev/{name}").exists() for name in ("nvidiactl", "dxg", "kfd")):
        return False
    code = "import torch; print(torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip() == "True"


def gpus(devices: str | None) -> int:
    """How many GPUs a model lies on: `auto`, all that this process sees; else one."""
    import torch

    return torch.cuda.device_count() if devices == "auto" else 1


@cache
def _cpu() -> str:
    import cpuinfo

    info = cpuinfo.get_cpu_info()
    brand = re.sub(r"@.*|\(R\)|\(TM\)|\bCPU\b", " ", info.get("brand_raw") or platform.machine())
    numbers = [str(info[k]) for k in ("family", "model") if k in info]
    return f"{brand} {' '.join(numbers)}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
