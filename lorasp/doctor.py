"""Say what a scale needs and whether this machine has it: `lorasp doctor --config …`."""

import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


def examine(config: dict[str, Any]) -> list[dict[str, Any]]:
    """One finding a requirement: {what, found, met}. Takes seconds and changes nothing."""
    requires = config["requires"]
    findings = [_disk(config["data_dir"], requires["disk_gib"])]
    if requires["cuda"]:
        findings.append(_cuda())
    if requires["hub"]:
        findings.append(_hub())
    return findings


def refusal(config: dict[str, Any], findings: list[dict[str, Any]]) -> str | None:
    """The sentence that says what is missing and what runs here; None where nothing is."""
    missing = [f"{item['what']} ({item['found']})" for item in findings if not item["met"]]
    if not missing:
        return None
    return (
        f"the {config['scale']} scale cannot run on this machine, and nothing was trained: missing "
        f"{'; '.join(missing)}. What runs here: make smoke (minutes), make mini (an hour or two)"
    )


def _disk(data_dir: str, needed: float) -> dict[str, Any]:
    folder = Path(data_dir)
    while not folder.exists():
        folder = folder.parent if folder != folder.parent else Path(".")
    used = sum(file.stat().st_size for file in Path(data_dir).rglob("*") if file.is_file())
    free = (shutil.disk_usage(folder).free + used) / 2**30  # a resumed run has its share already
    return {
        "what": f"{needed:g} GiB of free disk under {data_dir}",
        "found": f"{free:.0f} GiB, with what lies there",
        "met": free >= needed,
    }


def _cuda() -> dict[str, Any]:
    import torch

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "what": "a CUDA device",
        "found": ", ".join(devices) or f"torch {torch.__version__} finds none",
        "met": bool(devices),
    }


def _hub() -> dict[str, Any]:
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    finding = {"what": f"the Hugging Face hub at {ENDPOINT}", "found": "it answers", "met": True}
    if HF_HUB_OFFLINE:
        return finding | {"found": "HF_HUB_OFFLINE is set", "met": False}
    try:
        urllib.request.urlopen(f"{ENDPOINT}/api/models/google-t5/t5-base", timeout=10).close()
    except urllib.error.HTTPError:
        return finding  # it answers; whether a repository may be read is prepare's to say
    except OSError as error:
        return finding | {
            "found": f"cannot be reached: {getattr(error, 'reason', error)}",
            "met": False,
        }
    return finding
