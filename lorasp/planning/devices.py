"""The devices that a plan can be made for: `devices.yaml`, and this machine's CPU, measured."""

import os
import re
import time
from pathlib import Path
from typing import Any

from lorasp.config import Config
from lorasp.errors import UsageError
from lorasp.results import read_yaml

FILE = Path(__file__).with_name("devices.yaml")
GIB = 2**30
Device = dict[str, Any]


def device(config: Config, name: str | None = None) -> Device:
    """The device of that name: by default this machine's GPU, or its CPU where the config says so.

    Returns name, memory_bytes, tflops by number format, bandwidth in bytes a second, source. Raises
    UsageError with the known names, or where the device lacks the config's number format.
    """
    on_cpu = config["runtime"]["device"] == "cpu"
    name = name or ("cpu" if on_cpu else _here())
    if (name == "cpu") != on_cpu:
        raise UsageError(
            f"gpu is {name}, but runtime.device of the {config['scale']} scale is "
            f"{config['runtime']['device']}: {'leave it out' if on_cpu else f'name {_known()}'}"
        )
    if name == "cpu":
        return this_cpu(config["runtime"]["threads"])
    if name not in (table := read_yaml(FILE)):
        raise UsageError(f"gpu {name!r} is unknown; known are {_known()}")
    entry = table[name]
    precision = config["runtime"]["precision"]
    if entry["tflops"][precision] is None:
        raise UsageError(
            f"{name} has no {precision}, which runtime.precision of the {config['scale']} scale "
            "asks for: set it to fp16, or plan another GPU"
        )
    return {
        "name": name,
        "memory_bytes": int(entry["memory_gib"] * GIB),
        "tflops": entry["tflops"],
        "bandwidth": entry["bandwidth_gbs"] * 10**9,
        "source": entry["source"],
    }


def _known() -> str:
    return ", ".join(read_yaml(FILE))


def _here() -> str:
    """The known name of this machine's first GPU."""
    import torch

    if not torch.cuda.is_available():
        raise UsageError(f"there is no GPU here, so name the one to plan for: {_known()}")
    found = torch.cuda.get_device_name(0)
    if (name := match(found)) is None:
        raise UsageError(f"{found}, the GPU here, is in no table; name the nearest: {_known()}")
    return name


def match(found: str) -> str | None:
    """The known name of a GPU that torch calls `found`."""
    for name, entry in read_yaml(FILE).items():
        # whole words: A10 is no A100
        if any(re.search(rf"\b{re.escape(shown)}\b", found) for shown in entry["names"]):
            return str(name)
    return None


def this_cpu(threads: int) -> Device:
    """Memory of this machine, and the rate of a float32 matrix product on the threads of a run."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rate = max(_rate() for _ in range(3))
    finally:
        torch.set_num_threads(before)
    return {
        "name": "cpu",
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "tflops": dict.fromkeys(("bf16", "fp16", "fp32"), round(rate / 1e12, 4)),
        "bandwidth": 10 * 10**9,
        "source": f"measured here: matrix products of 1,024 by 1,024 on {threads} threads",
    }


def _rate() -> float:
    """FLOP/s of one product."""
    import torch

    matrix = torch.ones(1024, 1024)
    began = time.perf_counter()
    matrix @ matrix
    return 2 * 1024**3 / (time.perf_counter() - began)
