"""The machine, as a stable key for baselines, and the software, as a record beside every result."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def machine_key(device: str, share: int = 1, devices: str | None = None) -> str:
    """Hardware only, from fields that do not jitter: no clocks, no software versions.

    `amd-epyc-25-1-2c`: CPU model, its family and model number, the cores that this process may use; `share` of how many
    processes that measure at once, where they are several (they share memory's bandwidth, so that their times are of
    another machine). `nvidia-h200-140gb-x1-on-amd-epyc-25-1`: a GPU's host launches what it does, so it is part of the
    machine; `devices` as in `gpus`.
    """
    if device == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(0)
        memory = round(properties.total_memory / 2**30)
        return _slug(f"{properties.name} {memory}gb x{gpus(devices)} on {_cpu()}")
    several = f" of {share}" if share > 1 else ""
    return _slug(f"{_cpu()} {len(cores())}c{several}")


def _cpu() -> str:
    import cpuinfo

    info = cpuinfo.get_cpu_info()
    brand = re.sub(r"@.*|\(R\)|\(TM\)|\bCPU\b", " ", info.get("brand_raw") or platform.machine())
    numbers = [str(info[k]) for k in ("family", "model") if k in info]
    return f"{brand} {' '.join(numbers)}"


def cores() -> list[int]:
    """The cores this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def has_cuda() -> bool:
    """Whether a CUDA device is here; without a driver torch, which takes seconds to import, is not asked."""
    if sys.platform == "linux" and not any(Path(f"/dev/{name}").exists() for name in ("nvidiactl", "dxg", "kfd")):
        return False
    import torch

    return torch.cuda.is_available()


def gpus(devices: str | None) -> int:
    """How many GPUs a model lies on: `auto`, all that this process sees; else one."""
    import torch

    return torch.cuda.device_count() if devices == "auto" else 1


def conditions(device: str) -> dict[str, Any]:
    """What the (first) device is like now: clocks, temperature, power, why it is throttled; empty where none tells."""
    if device != "cuda":
        return {}
    with _nvml() as (nvml, handle):
        if nvml is None:
            return {}
        reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        names = {n.removeprefix("nvmlClocksThrottleReason"): v for n, v in vars(nvml).items()
                 if n.startswith("nvmlClocksThrottleReason") and isinstance(v, int)}  # fmt: skip
        return {
            "sm_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "temperature_c": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "power_limit_w": nvml.nvmlDeviceGetEnforcedPowerLimit(handle) // 1000,
            "throttled": ", ".join(sorted(n for n, v in names.items() if v & reasons and n not in _CALM)) or "no",
        }


def energy(indices: Collection[int]) -> float | None:
    """Joules that the GPUs have used since their driver was loaded; None where there is none, or one does not say."""
    used = [joules for index in indices if (joules := _energy(index)) is not None]
    return sum(used) if used and len(used) == len(indices) else None


def _energy(index: int) -> float | None:
    with _nvml(index) as (nvml, handle):
        try:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3 if nvml else None
        except nvml.NVMLError:
            return None  # devices before Volta


_CALM = ("None", "GpuIdle", "All", "ApplicationsClocksSetting")


@contextmanager
def _nvml(index: int = 0) -> Iterator[tuple[Any, Any]]:
    """NVML and the handle of the device that torch calls `index`, found by its UUID; (None, None) where none is."""
    try:
        import pynvml
        import torch

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no driver, no library, no package: nothing to tell
        yield None, None
        return
    try:
        identity = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
        yield pynvml, pynvml.nvmlDeviceGetHandleByUUID(identity)
    except pynvml.NVMLError:
        yield None, None
    finally:
        pynvml.nvmlShutdown()


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
        "settings": _settings(),
    }
    if device == "cuda":
        record |= {"cuda": torch.version.cuda, "gpu": torch.cuda.get_device_name(0), "gpus": torch.cuda.device_count()}
        with _nvml() as (nvml, _):
            record["driver"] = nvml.nvmlSystemGetDriverVersion() if nvml else None
    else:
        record |= {"cpu_capability": torch.backends.cpu.get_cpu_capability()}
    return record


def _settings() -> str:
    """What the environment's variables tell torch and its libraries, but for where files lie."""
    told = {k: v for k, v in os.environ.items() if re.match(r"(PY)?TORCH|(OMP|MKL|KMP|CUBLAS)_|NVIDIA_TF32", k)}
    return " ".join(f"{name}={value}" for name, value in sorted(told.items()) if "/" not in value)


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
