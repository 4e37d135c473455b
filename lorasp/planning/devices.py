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
    if name is not None and (name == "cpu") != on_cpu:
        raise UsageError(
            f"gpu is {name}, but runtime.device of the {config['scale']} scale is "
            f"{config['runtime']['device']}: {'leave it out' if on_cpu else f'name {_known()}'}"
        )
    if on_cpu:
        return this_cpu(config["runtime"]["threads"])
    found = listed(name) if name else here()
    if found is None:
        raise UsageError(
            "there is no GPU here, so name the one to plan for, by `--gpu TYPE` of lorasp plan or "
            f"`--config gpu=TYPE` of snakemake; known are {_known()}"
        )
    precision = config["runtime"]["precision"]
    if found["tflops"][precision] is None:
        raise UsageError(
            f"{found['name']} has no {precision}, which runtime.precision of the "
            f"{config['scale']} scale asks for: set it to fp16, or plan another GPU"
        )
    return found


def listed(name: str) -> Device:
    """The device of that name in the table; UsageError with all names where there is none."""
    if name not in (table := read_yaml(FILE)):
        raise UsageError(f"gpu {name!r} is unknown; known are {_known()}")
    entry = table[name]
    return {
        "name": name,
        "memory_bytes": int(entry["memory_gib"] * GIB),
        "tflops": entry["tflops"],
        "bandwidth": entry["bandwidth_gbs"] * 10**9,
        "source": entry["source"],
    }


def _known() -> str:
    return ", ".join(read_yaml(FILE))


def here() -> Device | None:
    """This machine's first GPU with the memory that it has, None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    shown = torch.cuda.get_device_name(0)
    total = torch.cuda.get_device_properties(0).total_memory
    if (name := match(shown)) is None:
        return unlisted(shown, total, torch.cuda.get_device_capability(0))
    return resized(listed(name), total)


def resized(known: Device, total: int) -> Device:
    """A known GPU of which one here has `total` bytes: never more than that.

    A laptop's GPU and a slice (MIG) bear the name of the card: much less memory is taken as a sign
    that they are as much slower.
    """
    share = total / known["memory_bytes"]
    if share >= 0.95:
        return known | {"memory_bytes": min(total, known["memory_bytes"])}
    return known | {
        "memory_bytes": total,
        "tflops": {key: rate and round(rate * share, 1) for key, rate in known["tflops"].items()},
        "bandwidth": int(known["bandwidth"] * share),
        "source": f"{known['source']}, in proportion to the {total / GIB:.1f} GiB of the one here",
    }


def unlisted(shown: str, total: int, capability: tuple[int, int]) -> Device:
    """A GPU that is in no table: its own name and memory, and the speed of the slowest there."""
    entries = read_yaml(FILE).values()
    slowest = {
        precision: min(rate for entry in entries if (rate := entry["tflops"][precision]))
        for precision in ("bf16", "fp16", "fp32")
    }
    return {
        "name": shown,
        "memory_bytes": total,
        # tensor cores have bf16 since Ampere
        "tflops": slowest | ({} if capability >= (8, 0) else {"bf16": None}),
        "bandwidth": min(entry["bandwidth_gbs"] for entry in entries) * 10**9,
        "source": "in no table of lorasp, so taken to be as slow as the slowest there",
    }


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
