"""What NVIDIA's driver tells of a GPU: each figure by itself, as not every card has all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_CALM = ("None", "GpuIdle", "All", "ApplicationsClocksSetting")


def conditions(device: str) -> dict[str, str | int]:
    """What the (first) device is like now: clocks, temperature, power, why it is throttled; without what none tells."""
    if device != "cuda":
        return {}
    with _nvml() as (nvml, handle):
        if nvml is None:
            return {}
        figures: dict[str, Callable[[], str | int]] = {
            "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) // 1000,
            "throttled": lambda: _throttled(nvml, handle),
        }
        told: dict[str, str | int] = {}
        for name, figure in figures.items():
            with suppress(nvml.NVMLError):  # this card does not say
                told[name] = figure()
        return told


def energy(indices: Collection[int]) -> float | None:
    """Joules that the GPUs have used since their driver was loaded; None where there is none, or one does not say."""
    used = [joules for index in indices if (joules := _energy(index)) is not None]
    return sum(used) if used and len(used) == len(indices) else None


def driver() -> str | None:
    """The driver's version."""
    with _nvml() as (nvml, _):
        return nvml.nvmlSystemGetDriverVersion() if nvml else None


def _energy(index: int) -> float | None:
    with _nvml(index) as (nvml, handle):
        try:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3 if nvml else None
        except nvml.NVMLError:
            return None  # devices before Volta


def _throttled(nvml: Any, handle: Any) -> str:
    reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    names = {n.removeprefix("nvmlClocksThrottleReason"): v for n, v in vars(nvml).items()
             if n.startswith("nvmlClocksThrottleReason") and isinstance(v, int)}  # fmt: skip
    return ", ".join(sorted(n for n, v in names.items() if v & reasons and n not in _CALM)) or "no"


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
        handle = pynvml.nvmlDeviceGetHandleByUUID(identity)
    except pynvml.NVMLError:
        yield None, None
    else:
        yield pynvml, handle
    finally:
        pynvml.nvmlShutdown()
