"""What the device says of itself: its name, who else works on it, how much energy it has used."""

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lorasp.errors import WorkError
from lorasp.results import provenance

GIB = 2**30
# Bytes that CUDA's own context and kernels may take of a GPU, outside torch's allocator.
CONTEXT = 2 * GIB
POWERCAP = Path("/sys/class/powercap")
# Energy counters move every few to a hundred milliseconds: a shorter block would be all rounding.
SECONDS = 2.0


class Unavailable(Exception):
    """The device does not say, for the reason given."""


class Meter(NamedTuple):
    """Energy counters: where they start again from zero, and what one count is worth in joules."""

    name: str
    read: Callable[[], list[int]]
    ranges: list[int]
    joules: float

    def spent(self, before: list[int], after: list[int]) -> float:
        """Joules between two readings, between which no counter has passed its range twice."""
        readings = zip(before, after, self.ranges, strict=True)
        return self.joules * sum(
            end - start + (full if end < start else 0) for start, end, full in readings
        )


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's as the provenance has it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return provenance()["machine"]["cpu"] or platform.machine()


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def nvml(device: torch.device) -> Iterator[tuple[Any, Any]]:
    """NVIDIA's management library and its handle of the GPU; what it refuses is Unavailable."""
    try:
        import pynvml
    except ImportError as error:
        raise Unavailable("the package nvidia-ml-py is not installed") from error
    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        # by its name: NVML's numbers know nothing of CUDA_VISIBLE_DEVICES
        yield pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError as error:
        raise Unavailable(f"NVML says: {error}") from error


def refuse_busy(device: torch.device, own: int = 0) -> None:
    """Raise WorkError where somebody else uses the GPU; a CPU is never refused.

    Somebody is a process that computes on it or, as a container shows none from outside, more
    memory in use than torch's own and a context. `own` is as in `other_processes`.
    """
    if device.type != "cuda":
        return
    others = other_processes(device, own)
    if not others:
        free, total = torch.cuda.mem_get_info(device)
        foreign = total - free - torch.cuda.memory_reserved(device)
        if foreign <= CONTEXT:
            return
        others = [f"processes that are not visible from here hold {foreign / GIB:.1f} GiB"]
    raise WorkError(
        f"{device_name(device)} is busy, so nothing can be measured on it: {', '.join(others)}; "
        "wait until it is idle, or name an idle GPU in CUDA_VISIBLE_DEVICES"
    )


def other_processes(device: torch.device, own: int) -> list[str]:
    """Who else computes on the GPU, in words; none where NVML cannot say.

    In a container NVML may list this process under a number that it does not know itself by. `own`
    is how many such there can be: 0 before this process uses the GPU, 1 after.
    """
    with suppress(Unavailable), nvml(device) as (library, handle):
        listed = library.nvmlDeviceGetComputeRunningProcesses(handle)
        others = [process for process in listed if process.pid != os.getpid()]
        if len(others) == len(listed) <= own:
            return []
        return [_described(library, process) for process in others]
    return []


def _described(library: Any, process: Any) -> str:
    """Number, name and memory of a process, as far as the driver shows them."""
    name, memory = "", ""
    with suppress(library.NVMLError):
        name = f" ({Path(library.nvmlSystemGetProcessName(process.pid)).name})"
    if process.usedGpuMemory:
        memory = f" holds {process.usedGpuMemory / GIB:.1f} GiB"
    return f"process {process.pid}{name}{memory}"


def energy(step: Callable[[], None], device: torch.device, steps: int) -> dict[str, Any]:
    """Joules a step, over a block of at least `steps` steps and SECONDS.

    NVML counts the whole board; RAPL the processors and, where it can, their memory, whatever runs
    on them. Returns joules_per_step, counter, steps and seconds; where no counter can be read these
    are None and `because` has the reason.
    """
    try:
        meter = meter_of(device)
    except Unavailable as reason:
        nothing = dict.fromkeys(("joules_per_step", "counter", "steps", "seconds"))
        return nothing | {"because": str(reason)}
    synchronize(device)
    joules, done, begin, seconds = 0.0, 0, time.perf_counter(), 0.0
    reading = meter.read()
    while done < steps or seconds < SECONDS:
        step()
        synchronize(device)
        # read after each step, as a server's RAPL counter is full within minutes
        now = meter.read()
        joules += meter.spent(reading, now)
        reading, done, seconds = now, done + 1, time.perf_counter() - begin
    return {
        "joules_per_step": joules / done,
        "counter": meter.name,
        "steps": done,
        "seconds": seconds,
        "because": None,
    }


def meter_of(device: torch.device) -> Meter:
    """The device's energy counters. Raises Unavailable where there are none to read."""
    if device.type != "cuda":
        return _rapl()
    with nvml(device) as (library, handle):
        library.nvmlDeviceGetTotalEnergyConsumption(handle)  # GPUs before Volta refuse

        def read() -> list[int]:
            return [library.nvmlDeviceGetTotalEnergyConsumption(handle)]

        return Meter("nvmlDeviceGetTotalEnergyConsumption", read, [2**64], 1e-3)


def _rapl() -> Meter:
    """RAPL's counters of packages and memory; its other zones lie inside those."""
    try:
        named = {
            zone: (zone / "name").read_text().strip() for zone in POWERCAP.glob("intel-rapl:*")
        }
        zones = sorted(zone for zone, name in named.items() if name.startswith(("package", "dram")))
        if not zones:
            raise Unavailable(f"{POWERCAP} has no energy counter of a processor")

        def read() -> list[int]:
            return [int((zone / "energy_uj").read_text()) for zone in zones]

        ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
        read()
    except OSError as error:
        raise Unavailable(f"{error.filename}: {error.strerror}") from error
    return Meter("RAPL " + ", ".join(named[zone] for zone in zones), read, ranges, 1e-6)
