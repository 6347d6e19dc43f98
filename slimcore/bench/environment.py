"""The machine, as a stable key for baselines, and the software, as a record beside every result."""

from __future__ import annotations

import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def machine_key(device: str) -> str:
    """Hardware only, from fields that do not jitter: no clocks, no software versions.

    `nvidia-h100-80gb-hbm3-80gb-x1`, or `amd-epyc-25-1-2c`: CPU model, its family and model number, cores.
    """
    if device == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(0)
        memory = round(properties.total_memory / 2**30)
        return _slug(f"{properties.name} {memory}gb x{torch.cuda.device_count()}")
    import cpuinfo
    import psutil

    info = cpuinfo.get_cpu_info()
    brand = re.sub(r"@.*|\(R\)|\(TM\)|\bCPU\b", " ", info.get("brand_raw") or platform.machine())
    numbers = [str(info[k]) for k in ("family", "model") if k in info]
    return _slug(f"{brand} {' '.join(numbers)} {psutil.cpu_count(logical=True)}c")


def software(root: Path, device: str) -> dict[str, Any]:
    """Versions and settings a time may depend on, and the commit of the checkout at `root`."""
    import torch

    import slimcore

    record: dict[str, Any] = {
        "slimcore": slimcore.__version__,
        "commit": _git(root, "rev-parse", "--short=12", "HEAD"),
        "dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "threads": torch.get_num_threads(),
    }
    if device == "cuda":
        record |= {"cuda": torch.version.cuda, "gpu": torch.cuda.get_device_name(0), "gpus": torch.cuda.device_count()}
    else:
        record |= {"cpu_capability": torch.backends.cpu.get_cpu_capability()}
    return record


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", str(root), *arguments],  # noqa: S607 - git from the user's own PATH
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
