"""Devices by the names users type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from slimcore.errors import DeviceError, told_as

if TYPE_CHECKING:
    import torch

AUTO: Literal["auto"] = "auto"  # spread over the GPUs, by accelerate


def device_named(name: str | torch.device) -> torch.device | Literal["auto"]:
    """The device `name`, as `cpu` or `cuda:1`; `auto` stays as it is. Raises DeviceError where it is not here."""
    import torch

    if name == AUTO:
        return AUTO
    with told_as(DeviceError, f"there is no device {str(name)!r} here, only {', '.join(_devices())}"):
        device = torch.device(name)
        torch.empty(1, device=device)  # nothing else tells of all kinds of devices
    return device


def _devices() -> list[str]:
    """What a model can be put on here."""
    import torch

    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]
