"""What this machine has: processor, memory, disk, GPUs, tools, packages; torch is not asked."""

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from lorasp.errors import WorkError
from lorasp.redaction import redacted
from lorasp.results import processor

GIB = 2**30
LOCK = Path(__file__).parents[1] / "requirements.lock"  # in a checkout
# Programs that a way of running asks for, by what they are for.
TOOLS = {
    "scheduler": ("sbatch", "kubectl"),
    "containers": ("apptainer", "singularity", "podman", "docker"),
    "conda": ("conda", "mamba", "micromamba"),
}


def machine(folder: Path = Path()) -> dict[str, Any]:
    """The facts as a JSON-like dictionary; sizes in bytes, `disk_bytes` free where `folder` is.

    `driver` says what is wrong with the GPUs' driver, None where nothing is.
    """
    cards, problem = [], None
    try:
        cards = gpus()
    except WorkError as error:
        problem = str(error)
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "disk_bytes": shutil.disk_usage(folder).free,
        "gpus": cards,
        "driver": problem,
        "tools": {
            use: [name for name in names if shutil.which(name)] for use, names in TOOLS.items()
        },
        "hub_token": has_token(),
        "python": platform.python_version(),
        "other_packages": other_packages(),
    }


def gpus() -> list[dict[str, Any]]:
    """Name, memory and driver of every GPU that the driver knows; none without a driver."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")  # comes with the driver
    except OSError:
        return []
    import pynvml

    try:
        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return [
            {
                "name": pynvml.nvmlDeviceGetName(handle),
                "memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle).total,
                "driver": driver,
            }
            for handle in handles
        ]
    except pynvml.NVMLError as error:
        raise WorkError(f"the NVIDIA driver does not answer: {error}") from error


def has_token() -> bool:
    """Whether the hub's clients would find a token; what it is, is nobody's business."""
    from huggingface_hub import get_token

    return get_token() is not None


def other_packages() -> list[str]:
    """The packages that are missing or in another version than requirements.lock pins."""
    if not LOCK.is_file():
        return []
    pins = [line.split("==") for line in LOCK.read_text().splitlines() if "==" in line]
    found = {name: _version(name) for name, _ in pins}
    # a build's own mark, such as +cpu, is no other version
    return [
        f"{name} {found[name] or 'missing'} ({pinned})"
        for name, pinned in pins
        if (found[name] or "").split("+")[0] != pinned
    ]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cuda_build() -> bool:
    """Whether the torch that is installed can use a GPU, by the libraries that lie in it."""
    found = importlib.util.find_spec("torch")
    places = found.submodule_search_locations if found else None
    return any(next(Path(place, "lib").glob("libtorch_cuda*"), None) for place in places or ())


def index_answer(package: str) -> str | None:
    """What stands between pip and the package index; None where it answers. Takes seconds."""
    command = [sys.executable, "-m", "pip", "index", "versions", package, "--no-input"]
    command += ["--disable-pip-version-check", "--retries", "0", "--timeout", "5"]
    done = subprocess.run(command, capture_output=True, text=True)
    told = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return redacted(told[-1].removeprefix("ERROR: ")) if done.returncode and told else None
