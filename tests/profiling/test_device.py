"""Busy devices and energy counters: drivers and counters that are replaced, sums by hand."""

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorasp.errors import WorkError
from lorasp.profiling import device as module
from lorasp.profiling.device import energy, refuse_busy

GIB = 2**30
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class NVMLError(Exception):
    """What NVML raises."""


class Driver:
    """A GPU with 80 GiB as torch and NVML show it."""

    def __init__(self) -> None:
        self.processes: list[tuple[int, int | None]] = []
        self.used, self.reserved, self.millijoules = 0, 0, 0
        self.refuses: set[str] = set()
        self.NVMLError = NVMLError

    def _ask(self, name: str) -> None:
        if name in self.refuses:
            raise NVMLError("Not Supported")

    def nvmlInit(self) -> None:
        self._ask("init")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert uuid == "GPU-1234"
        return "handle"

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in self.processes]

    def nvmlSystemGetProcessName(self, pid: int) -> str:
        self._ask("name")
        return "/usr/bin/python"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self._ask("energy")
        return self.millijoules


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    replaced: dict[str, Callable[..., Any]] = {
        "get_device_properties": lambda device: SimpleNamespace(uuid="1234"),
        "get_device_name": lambda device: "A GPU",
        "mem_get_info": lambda device: (80 * GIB - driver.used, 80 * GIB),
        "memory_reserved": lambda device: driver.reserved,
        "synchronize": lambda device: None,
    }
    for name, function in replaced.items():
        monkeypatch.setattr(torch.cuda, name, function)
    return driver


def test_an_idle_gpu_and_any_cpu_are_taken(gpu: Driver) -> None:
    gpu.used = GIB // 2  # a context
    refuse_busy(CUDA)
    gpu.processes = [(os.getpid(), 20 * GIB)]
    gpu.used, gpu.reserved = 20 * GIB, 19 * GIB
    refuse_busy(CUDA)
    refuse_busy(CUDA, own=1)
    gpu.processes = [(1, 9 * GIB)]
    refuse_busy(CPU)


def test_another_process_is_named_with_its_memory(gpu: Driver) -> None:
    gpu.processes = [(4242, 10 * GIB), (os.getpid(), GIB), (4343, None)]
    busy = (
        r"A GPU is busy, .*: process 4242 \(python\) holds 10.0 GiB, process 4343 \(python\); "
        r"wait until it is idle, or name an idle GPU in CUDA_VISIBLE_DEVICES"
    )
    for own in (0, 1):
        with pytest.raises(WorkError, match=busy):
            refuse_busy(CUDA, own)
    gpu.refuses = {"name"}
    with pytest.raises(WorkError, match=r"process 4242 holds 10.0 GiB"):
        refuse_busy(CUDA)


def test_in_a_container_one_unknown_process_is_this_one_once_it_uses_the_gpu(gpu: Driver) -> None:
    gpu.processes = [(4242, GIB)]
    refuse_busy(CUDA, own=1)
    with pytest.raises(WorkError, match="process 4242"):
        refuse_busy(CUDA)
    gpu.processes = [(4242, GIB), (os.getpid(), GIB)]  # no container: this one is known
    with pytest.raises(WorkError, match="process 4242"):
        refuse_busy(CUDA, own=1)
    gpu.processes = [(4242, GIB), (4343, GIB)]
    with pytest.raises(WorkError, match=r"process 4242 .*process 4343"):
        refuse_busy(CUDA, own=1)


@pytest.mark.parametrize("nvml", ["absent", "refuses", "sees nothing"])
def test_memory_that_is_not_ours_is_seen_without_nvml(
    gpu: Driver, monkeypatch: pytest.MonkeyPatch, nvml: str
) -> None:
    if nvml == "absent":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    gpu.refuses = {"init"} if nvml == "refuses" else set()
    gpu.used, gpu.reserved = 12 * GIB, 11 * GIB
    refuse_busy(CUDA)
    gpu.reserved = 2 * GIB
    with pytest.raises(WorkError, match=r"not visible from here hold 10.0 GiB"):
        refuse_busy(CUDA)


def test_nvml_energy_is_millijoules_over_all_steps(
    gpu: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step() -> None:
        gpu.millijoules += 3_000

    clock = itertools.count(0.0, 0.5)  # every look at the clock is half a second later
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    gpu.millijoules = 10**9
    assert energy(step, CUDA, 7) == {
        "joules_per_step": 3.0,
        "counter": "nvmlDeviceGetTotalEnergyConsumption",
        "steps": 7,
        "seconds": 3.5,
        "because": None,
    }
    few = energy(step, CUDA, 1)
    assert (few["steps"], few["seconds"]) == (4, 2.0)  # no block is shorter than two seconds


def test_without_a_counter_the_reason_is_told(
    gpu: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def told(device: torch.device) -> str:
        found = energy(lambda: None, device, 3)
        assert found["joules_per_step"] is found["counter"] is found["steps"] is None
        return str(found["because"])

    gpu.refuses = {"energy"}
    assert told(CUDA) == "NVML says: Not Supported"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py is not installed" in told(CUDA)
    monkeypatch.setattr(module, "POWERCAP", tmp_path)
    assert told(CPU) == f"{tmp_path} has no energy counter of a processor"
    zone = tmp_path / "intel-rapl:0"
    (zone / "energy_uj").mkdir(parents=True)  # nobody can read it, root included
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("1000\n")
    assert told(CPU) == f"{zone / 'energy_uj'}: Is a directory"


def test_rapl_adds_packages_and_memory_over_the_end_of_their_ranges(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Microjoules a step: 300,000 and 100,000 in two packages, 50,000 in memory."""
    full = 1_000_000
    zones = {
        "intel-rapl:0": ("package-0", 900_000, 300_000),
        "intel-rapl:0:0": ("core", 0, 250_000),  # inside the package
        "intel-rapl:0:1": ("dram", 0, 50_000),
        "intel-rapl:1": ("package-1", 5, 100_000),
        "intel-rapl:2": ("psys", 0, 700_000),  # the whole machine
    }
    counts = {folder: start for folder, (_, start, _) in zones.items()}

    def write() -> None:
        for folder, count in counts.items():
            (tmp_path / folder / "energy_uj").write_text(f"{count}\n")

    for folder, (name, _, _) in zones.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "name").write_text(f"{name}\n")
        (tmp_path / folder / "max_energy_range_uj").write_text(f"{full}\n")
    write()

    def step() -> None:
        for folder, (_, _, each) in zones.items():
            counts[folder] = (counts[folder] + each) % full
        write()

    monkeypatch.setattr(module, "POWERCAP", tmp_path)
    monkeypatch.setattr(module, "SECONDS", 0.0)
    found = energy(step, CPU, 9)  # the first package passes its range three times
    assert found["counter"] == "RAPL package-0, dram, package-1" and found["steps"] == 9
    assert found["joules_per_step"] == pytest.approx(0.45)
