"""The GPUs of this machine: how many a run may use, and a lock on each that a job works on.

Snakemake counts GPUs and assigns none, and two workflows know nothing of each other. So a job locks
as many devices as it needs before CUDA starts, and names them in CUDA_VISIBLE_DEVICES.
"""

import contextlib
import ctypes
import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorasp import locks
from lorasp.errors import UsageError, WorkError

VISIBLE = "CUDA_VISIBLE_DEVICES"
SCHEDULERS = ("SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST")
# One place for all runs of a user: XDG_RUNTIME_DIR goes at logout, and TMPDIR may differ.
FOLDER = Path("/tmp", f"lorasp-{os.geteuid()}")
SECONDS = 0.5  # between two looks at devices that are taken


def count() -> int:
    """How many GPUs this process may use; 0 without a driver. Imports no torch."""
    return len(devices())


def devices() -> list[str]:
    """The GPUs that this process may use, by their UUIDs where the driver is there to tell them.

    They are those of CUDA_VISIBLE_DEVICES where it is set, in its order, else all of the machine; a
    GPU that is cut into MIG slices counts as its slices. Numbers are those of nvidia-smi. Raises
    UsageError for a name in CUDA_VISIBLE_DEVICES that no GPU here has.
    """
    found = _found()
    chosen = os.environ.get(VISIBLE)
    if chosen is None:
        return [part for parts in found.values() for part in parts]
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    if "-1" in names:  # CUDA sees none from there on
        names = names[: names.index("-1")]
    known = [_known(name, found) for name in names] if found else names
    return list(dict.fromkeys(known))  # a job cannot have one twice


def _known(name: str, found: dict[str, list[str]]) -> str:
    """The UUID of what CUDA_VISIBLE_DEVICES names: a number, a UUID or the start of one."""
    if name.isdigit() and int(name) < len(found):
        return list(found.values())[int(name)][0]  # of a card in slices CUDA takes the first
    everything = {part: part for parts in found.values() for part in parts}
    everything |= {gpu: parts[0] for gpu, parts in found.items()}
    matching = {uuid for known, uuid in everything.items() if known.startswith(name)}
    if name.isdigit() or len(matching) != 1:
        raise UsageError(
            f"{VISIBLE} names {name!r}; the GPUs here are 0 to {len(found) - 1}, by UUID "
            f"{', '.join(everything)}"
        )
    return matching.pop()


def _found() -> dict[str, list[str]]:
    """The machine's GPUs in the order of nvidia-smi, each with its MIG slices or itself."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")  # comes with the driver
    except OSError:
        return {}
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return {
            (uuid := pynvml.nvmlDeviceGetUUID(handle)): _slices(pynvml, handle) or [uuid]
            for handle in handles
        }
    except pynvml.NVMLError as error:
        raise WorkError(f"the NVIDIA driver does not tell which GPUs there are: {error}") from error


def _slices(nvml: Any, handle: Any) -> list[str]:
    parts = []
    with contextlib.suppress(nvml.NVMLError_NotSupported):  # a GPU that cannot be cut
        if nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE:
            for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
                with contextlib.suppress(nvml.NVMLError_NotFound):  # a place without a slice
                    part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
                    parts.append(nvml.nvmlDeviceGetUUID(part))
    return parts


@contextlib.contextmanager
def claim(wanted: int) -> Iterator[list[str]]:
    """Hold so many GPUs alone while the block runs; they are what CUDA sees in it.

    Waits, with a line on stderr, while others of this user hold them. Processes forked in the block
    hold them too; the kernel lets go when the last one has ended, however it ended. Devices that a
    scheduler assigned are left as it assigned them. Must be entered before CUDA starts. Raises
    UsageError where the machine has fewer; of MIG slices CUDA shows a process one, so that a job
    on several devices needs whole GPUs.
    """
    here = devices()
    usable = here if wanted == 1 else [name for name in here if not name.startswith("MIG-")]
    assigned = any(name in os.environ for name in SCHEDULERS) and len(usable) == wanted
    if assigned or not here:  # where there is no GPU at all, torch says so
        yield usable
        return
    if len(usable) < wanted:
        raise UsageError(
            f"{wanted} whole GPUs are asked for and {len(usable)} may be used here; "
            f"there are {', '.join(here)}"
        )
    with contextlib.ExitStack() as held:
        names = _take(usable, wanted, held)
        before = os.environ.get(VISIBLE)
        os.environ[VISIBLE] = ",".join(names)
        try:
            yield names
        finally:
            if before is None:
                del os.environ[VISIBLE]
            else:
                os.environ[VISIBLE] = before


def _take(usable: list[str], wanted: int, held: contextlib.ExitStack) -> list[str]:
    """Lock `wanted` of the devices, in the order in which they are free.

    One job at a time stands at the counter, so that a job that needs several gets them, and none
    waits for another that waits for it.
    """
    folder, names, told = _folder(), list[str](), False
    with contextlib.ExitStack() as turn:
        at_counter = False
        while len(names) < wanted:
            at_counter = at_counter or _lock(folder / "counter", turn)
            if at_counter:
                free = (name for name in usable if name not in names)
                names += itertools.islice(
                    (name for name in free if _lock(folder / name, held)), wanted - len(names)
                )
            if len(names) < wanted:
                if not told:
                    _tell(folder, [name for name in usable if name not in names], wanted)
                told = True
                time.sleep(SECONDS)
    return names


def _lock(path: Path, held: contextlib.ExitStack) -> bool:
    if (file := locks.take(path)) is None:
        return False
    file.write(f": lorasp {' '.join(sys.argv[1:])}"[:200])
    file.flush()
    held.enter_context(file)
    return True


def _tell(folder: Path, taken: list[str], wanted: int) -> None:
    holders = [
        f"{name} ({locks.holder(folder / name) if (folder / name).exists() else 'next in line'})"
        for name in taken
    ]
    print(f"waiting for {wanted} free GPUs: {', '.join(holders)}", file=sys.stderr, flush=True)


def _folder() -> Path:
    """Where the locks lie, this user's alone; WorkError where somebody else made it."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    found = FOLDER.lstat()
    if not FOLDER.is_dir() or FOLDER.is_symlink() or found.st_uid != os.geteuid():
        raise WorkError(f"{FOLDER}, for the locks of GPUs, belongs to somebody else: remove it")
    return FOLDER
