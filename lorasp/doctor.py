"""What this machine can run, what is missing, and the command that mends it: `lorasp doctor`.

lorasp doctor                               one page: the machine, and every scale
lorasp doctor --config config/paper.yaml    one scale; exit code 1 where something is missing
"""

import contextlib
import os
import shutil
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lorasp.config import Config, cells, data_folder, resolve_task
from lorasp.data.folders import MANIFEST
from lorasp.errors import WorkError
from lorasp.machine import GIB, cuda_build, gpus
from lorasp.redaction import redacted

Finding = dict[str, Any]
DRIVER = "load the driver anew, or restart the machine; see nvidia-smi"
COMPUTES = {"train", "evaluate", "profile"}


def examine(config: Config, jobs: list[dict[str, Any]] | None = None) -> list[Finding]:
    """One finding a requirement: {what, found, met, mend}. Takes seconds and changes nothing.

    The disk is asked for where all that is left of the scale is to be trained, a device where a job
    computes on it, the hub where something of it is still to be fetched. `jobs` are those to run,
    each a dictionary with its stage and its names: by default all of the scale. `mend` is the
    command, or the step, that helps where it is not met.
    """
    requires = config["requires"]
    stages = COMPUTES if jobs is None else {job["stage"] for job in jobs}
    findings = []
    if jobs is None or _trains_the_rest(config, jobs):
        findings.append(_disk(config))
    if requires["cuda"] and stages & COMPUTES:
        findings.append(_cuda(config["scale"]))
    if requires["hub"] and (unprepared(config, "hub") if jobs is None else _fetched(config, jobs)):
        findings.append(_hub())
    return findings


def _trains_the_rest(config: Config, jobs: list[dict[str, Any]]) -> bool:
    """Whether no run of the scale stays untrained after these jobs, some of which train."""
    asked = sum(job["stage"] == "train" for job in jobs)
    left = sum(not (run.folder / "train.json").exists() for run in cells(config))
    return asked >= left > 0


def unprepared(config: Config, kind: str) -> list[dict[str, Any]]:
    """The sources of a kind that runs of the scale use and that have not been prepared here."""
    runs = cells(config)
    tasks = [resolve_task(config, name) for name in {run.task for run in runs}]
    places: set[tuple[str, ...]] = {("models", "models", run.model) for run in runs}
    places |= {
        ("datasets", task[k]) for task in tasks for k in ("dataset", "benchmark") if k in task
    }
    sources = [
        config[section][below[-1]]["source"]
        for section, *below in sorted(places)
        if not data_folder(config, *below, MANIFEST).is_file()
    ]
    return [source for source in sources if source["kind"] == kind]


def _fetched(config: Config, jobs: list[dict[str, Any]]) -> list[str]:
    """The data sets and models of the hub that these jobs prepare."""
    kinds = {"prepare_dataset": ("datasets", "dataset"), "prepare_model": ("models", "model")}
    asked = [(*kinds[job["stage"]], job) for job in jobs if job["stage"] in kinds]
    names = [(kind, job[role]) for kind, role, job in asked]
    return [name for kind, name in names if config[kind][name]["source"]["kind"] == "hub"]


def refusal(config: Config, findings: list[Finding]) -> str | None:
    """The sentence that says what is missing and what runs here; None where nothing is."""
    missing = [f"{item['what']} ({item['found']})" for item in findings if not item["met"]]
    if not missing:
        return None
    return (
        f"the {config['scale']} scale cannot run on this machine, and nothing was trained: missing "
        f"{'; '.join(missing)}. What runs here: make smoke (minutes), make mini (an hour or two); "
        "lorasp doctor says more"
    )


def _disk(config: Config) -> Finding:
    """Nearly all of it is taken by checkpoints and models that runs save, so below results."""
    needed, place = config["requires"]["disk_gib"], Path("results", config["scale"])
    disk = _disk_of(place)
    # a resumed run has its share already
    taken = [place] + [folder for folder in [Path(config["data_dir"])] if _disk_of(folder) == disk]
    free = (shutil.disk_usage(_there(place)).free + _bytes(taken)) / GIB
    return {
        "what": f"{needed:g} GiB of free disk under results",
        "found": f"{free:.0f} GiB, with what lies there already",
        "met": free >= needed,
        "mend": "free some, or let results lie elsewhere: ln -s /a/bigger/disk results",
    }


def _there(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _disk_of(folder: Path) -> int:
    return _there(folder).stat().st_dev


def _bytes(folders: list[Path]) -> int:
    """Bytes of the files below folders in which others may be at work, each counted once."""
    sizes: dict[tuple[int, int], int] = {}
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    found = os.stat(os.path.join(place, name))
                    sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())


def _cuda(scale: str) -> Finding:
    finding = {
        "what": "a CUDA device",
        "found": "no NVIDIA driver answers",
        "met": False,
        "mend": f"run it where there are GPUs: lorasp plan --scale {scale} --gpu h100-80gb "
        "says how many, and for how long",
    }
    try:
        here = [gpu["name"] for gpu in gpus()]
    except WorkError as error:
        return finding | {"found": str(error), "mend": DRIVER}
    if not here:
        return finding
    if not cuda_build():
        found = f"{', '.join(here)}, but the torch that is installed was built without CUDA"
        return finding | {"found": found, "mend": "install torch's CUDA build: make .venv"}
    import torch

    usable = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if not usable:
        found = f"torch {torch.__version__} can use none of {', '.join(here)}"
        return finding | {"found": found, "mend": "see CUDA_VISIBLE_DEVICES, and nvidia-smi"}
    return finding | {"found": ", ".join(usable), "met": True}


def _hub() -> Finding:
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    finding = {
        "what": f"the Hugging Face hub at {redacted(ENDPOINT)}",
        "found": "it answers",
        "met": True,
        "mend": "prepare on a machine that reaches it, and carry data/ over",
    }
    if HF_HUB_OFFLINE:
        mend = f"unset HF_HUB_OFFLINE, or {finding['mend']}"
        return finding | {"found": "HF_HUB_OFFLINE is set", "met": False, "mend": mend}
    login, _, host = urlsplit(ENDPOINT).netloc.rpartition("@")
    address = urlsplit(ENDPOINT)._replace(netloc=host).geturl()
    request = urllib.request.Request(f"{address}/api/models/google-t5/t5-base")
    if login:  # urllib would take it for a part of the host's name
        request.add_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.HTTPError:
        return finding  # it answers; whether a repository may be read is prepare's to say
    except OSError as error:
        reason = redacted(str(getattr(error, "reason", error)))
        return finding | {"found": f"cannot be reached: {reason}", "met": False}
    return finding
