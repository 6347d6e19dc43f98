"""What a process finds out of its machine: which GPU is its own, which cores, what NVIDIA's driver and git tell."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from slimcore.bench.measure import machine, nvml
from slimcore.bench.measure.machine import machine_key, memory_size, own_gpu, quota, threads
from slimcore.bench.measure.software import software


@pytest.mark.parametrize(
    ("visible", "slot", "own"),
    [
        (None, 1, "1"),
        ("2,3", 1, "3"),
        ("2,3", 2, ""),  # a third process
        ("2, 3", 1, "3"),
        ("GPU-aaaa,GPU-bbbb", 1, "GPU-bbbb"),
        ("MIG-aaaa,MIG-bbbb", 0, "MIG-aaaa"),
        ("-1", 0, ""),
        ("", 0, ""),  # hidden on purpose: CUDA_VISIBLE_DEVICES= pytest perf -n 2
        ("", 1, ""),
    ],
)
def test_the_own_gpu_of_a_process_is_one_that_is_allowed(visible, slot, own):
    """Of those in CUDA_VISIBLE_DEVICES; none where none is left."""
    assert own_gpu(slot, visible) == own


@pytest.mark.parametrize(
    ("gib", "size"),
    [(139.49, 140), (139.51, 140), (39.39, 40), (39.59, 40), (79.2, 80), (79.6, 80), (23.6, 24), (15.7, 16), (7.8, 8)],
)
def test_a_gpus_memory_has_one_size_whatever_the_driver_keeps_of_it(gib, size):
    """Some tenths of a GiB do not make it another machine."""
    assert memory_size(gib) == size


def test_a_containers_quota_is_the_tightest_of_its_groups(tmp_path, monkeypatch):
    """`max` is none, and so is a machine without such files; a quota leaves that many threads, rounded up."""
    read = Path.read_text
    says = {"/proc/self/cgroup": "1:cpu:/other\n0::/pod/one\n"}
    monkeypatch.setattr(Path, "read_text", lambda path, **how: says.get(str(path)) or read(path, **how))
    (tmp_path / "pod" / "one").mkdir(parents=True)
    assert quota(tmp_path) is None
    for group, limit, least in (
        ("", "max 100000", None),
        ("pod/one", "250000 100000", 2.5),
        ("pod", "150000 100000", 1.5),
        ("", "200000 100000", 1.5),
        ("pod/one", "25000 50000", 0.5),
    ):
        (tmp_path / group / "cpu.max").write_text(f"{limit}\n")
        assert quota(tmp_path) == least
    monkeypatch.setattr(machine, "cores", lambda: [0, 1, 2])
    for allowed, count in ((None, 3), (0.2, 1), (1.5, 2), (9.0, 3)):
        monkeypatch.setattr(machine, "quota", lambda allowed=allowed: allowed)
        assert threads() == count


def test_a_machines_key_has_hardware_only(monkeypatch):
    """The CPU, and how many threads run; of how many processes that share it; a GPU, how many, and its host."""
    monkeypatch.setattr(machine, "_cpu", lambda: "AMD EPYC 25 1")
    monkeypatch.setattr(machine, "threads", lambda: 2)
    assert machine_key("cpu") == "amd-epyc-25-1-2c"
    assert machine_key("cpu", share=3) == "amd-epyc-25-1-2c-of-3"
    card = SimpleNamespace(name="NVIDIA H200", total_memory=139.8 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert machine_key("cuda") == "nvidia-h200-140gb-x1-on-amd-epyc-25-1"
    assert machine_key("cuda", devices="auto") == "nvidia-h200-140gb-x4-on-amd-epyc-25-1"


def test_what_the_environment_tells_torch_is_recorded(monkeypatch):
    """It may change a time; where files lie does not."""
    monkeypatch.setenv("TORCHINDUCTOR_COORDINATE_DESCENT_TUNING", "1")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere")
    settings = software(Path(), "cpu")["settings"].split()
    assert "TORCHINDUCTOR_COORDINATE_DESCENT_TUNING=1" in settings
    assert not any("CACHE_DIR" in s for s in settings)


class Driver(SimpleNamespace):
    """NVML of a card that does not know the calls in `lacks`."""

    class NVMLError(Exception):
        """What its calls raise."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, *lacks):
        told = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: self.log.append("shut"),
            "nvmlSystemGetDriverVersion": lambda: "570.1",
            "nvmlDeviceGetHandleByUUID": lambda name: int(name.removeprefix("GPU-")),
            "nvmlDeviceGetClockInfo": lambda handle, which: 1000 * which,
            "nvmlDeviceGetTemperature": lambda handle, which: 50,
            "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 700_000,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: 0b101,
            "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 2000 * handle,
            "nvmlClocksThrottleReasonGpuIdle": 0b1,
            "nvmlClocksThrottleReasonSwPowerCap": 0b100,
        }
        super().__init__(log=[], **told | dict.fromkeys(lacks, self._unknown))

    def _unknown(self, *_):
        raise self.NVMLError("not supported")


@pytest.fixture
def driver(monkeypatch):
    """Put a driver in the place of NVIDIA's; the card that torch calls n has the UUID 10 + n."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=10 + index))

    def install(*lacks):
        monkeypatch.setitem(sys.modules, "pynvml", Driver(*lacks))
        return sys.modules["pynvml"]

    return install


def test_what_a_card_does_not_tell_is_left_out(driver):
    """The other figures stay."""
    whole = {"sm_mhz": 1000, "memory_mhz": 2000, "temperature_c": 50, "power_limit_w": 700, "throttled": "SwPowerCap"}
    driver()
    assert nvml.conditions("cuda") == whole
    for call, *names in (
        ("nvmlDeviceGetClockInfo", "sm_mhz", "memory_mhz"),
        ("nvmlDeviceGetTemperature", "temperature_c"),
        ("nvmlDeviceGetEnforcedPowerLimit", "power_limit_w"),
        ("nvmlDeviceGetCurrentClocksThrottleReasons", "throttled"),
    ):
        fake = driver(call)
        assert nvml.conditions("cuda") == {k: v for k, v in whole.items() if k not in names}
        assert fake.log == ["shut"]
    assert nvml.conditions("cpu") == {}


def test_energy_is_of_all_gpus_or_of_none(driver):
    """In joules; a card that does not say leaves no half of a sum."""
    driver()
    assert nvml.energy([0]) == 20.0
    assert nvml.energy([0, 2]) == 44.0
    assert nvml.energy([]) is None
    assert nvml.driver() == "570.1"
    driver("nvmlDeviceGetTotalEnergyConsumption")
    assert nvml.energy([0, 2]) is None


@pytest.mark.parametrize("lacks", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_without_a_driver_or_a_card_of_its_own_there_is_nothing_to_tell(driver, lacks):
    """As on a part of a GPU."""
    driver(lacks)
    assert nvml.conditions("cuda") == {}
    assert nvml.energy([0]) is None
    assert nvml.driver() is None
