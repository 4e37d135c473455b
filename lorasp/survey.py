"""The page of `lorasp doctor`: the machine, what runs on it, what is missing, what mends it."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorasp.config import Config, load_config
from lorasp.doctor import Finding, examine, unprepared
from lorasp.errors import UsageError, WorkError
from lorasp.machine import GIB, index_answer, machine
from lorasp.planning import devices
from lorasp.results import read_json

WIDTH = 100
# The shipped scales, what starts each and what it takes; any other is a snakemake run.
COMMANDS = {
    "smoke": ("make smoke", "every path on random models: minutes"),
    "mini": ("make mini", "small real models on two cores: an hour or two"),
    "rehearse": (
        "make rehearse",
        "the paper's configuration on a CPU, with a stand-in for the hub",
    ),
    "paper": ("make reproduce", "the paper itself, on GPUs"),
}
OWN_HUB = {"rehearse"}


def survey(gpu: str | None = None) -> dict[str, Any]:
    """The machine's facts, its own findings, and every scale of config/ with what it lacks here.

    `gpu` names the device that the runs of a scale on GPUs are to be fitted to; by default the one
    here. Raises UsageError where there is no config/, or no such device.
    """
    files = sorted(Path("config").glob("*.yaml"))
    if not files:
        raise UsageError("there is no config/*.yaml here: start lorasp doctor in a checkout")
    here = machine()
    device = gpu and devices.listed(gpu)["name"]
    names = {devices.match(found["name"]) or found["name"] for found in here["gpus"]}
    kind = device or (sorted(names) or [None])[0]
    order = [f"config/{scale}.yaml" for scale in COMMANDS]
    files.sort(key=lambda file: (*(order.index(name) for name in order if name == str(file)), 9))
    scales = [_of_file(file, kind) for file in files]
    return {
        "machine": here,
        "findings": _own(here),
        "scales": [scale for scale in scales if scale is not None],
    }


def _of_file(file: Path, device: str | None) -> dict[str, Any] | None:
    """What a configuration lacks here, a mistake in it too; None where it trains nothing."""
    try:
        config = load_config(file)
    except UsageError as error:
        finding = {"what": "a configuration", "found": str(error), "met": False}
        broken: dict[str, Any] = {"scale": file.stem}
        broken |= {"command": f"snakemake --config scale={file.stem}"}
        broken |= {"about": "a configuration of your own", "runs": False, "plan": None, "fit": []}
        return broken | {"findings": [finding | {"mend": f"correct {file}"}]}
    return None if "simulate" in config else _scale(config, device)


def _own(here: dict[str, Any]) -> list[Finding]:
    """What is wrong whatever the scale."""
    other = here["other_packages"]
    return [
        {
            "what": "the packages that requirements.lock pins",
            "found": ", ".join(other) if other else "as pinned",
            "met": not other,
            "mend": "make .venv, or pip install -r requirements.lock",
        }
    ]


def _scale(config: Config, device: str | None) -> dict[str, Any]:
    name = config["scale"]
    other = f"snakemake --cores all --config scale={name}"
    command, about = COMMANDS.get(name, (other, "a configuration of your own"))
    findings = examine(config)
    if name in OWN_HUB:
        findings = [finding for finding in findings if "Hugging Face" not in finding["what"]]
    if wanted := _artefacts(config):
        findings.append(_index(wanted))
    found = {"scale": name, "command": command, "about": about, "findings": findings}
    found["runs"] = all(finding["met"] for finding in findings)
    return found | (
        _fit(config, device) if config["requires"]["cuda"] else {"plan": None, "fit": []}
    )


def _artefacts(config: Config) -> list[str]:
    """The packages of the index that the scale's runs still need, and that are not here."""
    pinned = [artefact for source in unprepared(config, "pypi") for artefact in source["artefacts"]]
    kept = Path(config["data_dir"], "artefacts")
    return sorted({pin["package"] for pin in pinned if not (kept / pin["file"]).is_file()})


def _index(packages: list[str]) -> Finding:
    answer = index_answer(packages[0])
    return {
        "what": f"the package index, for {len(packages)} packages",
        "found": answer or "it answers",
        "met": answer is None,
        "mend": "see `pip config list` and PIP_INDEX_URL, or carry data/artefacts/ over",
    }


def _fit(config: Config, device: str | None) -> dict[str, Any]:
    """Of the scale's plan: which methods of a model fit on how many of the devices, and hours.

    `plan` is the command that makes the plan where there is none for this device.
    """
    path = Path("results", config["scale"], "plan.json")
    kind = device or "h100-80gb"
    made = f"lorasp plan --scale {config['scale']} --gpu {kind} --out {path}"
    try:
        plan = read_json(path, "plan")
    except WorkError:  # none, or one of another version
        return {"plan": made, "fit": []}
    if device not in (None, plan["gpu"]["name"]):
        return {"plan": made, "fit": []}
    jobs = [job for job in plan["jobs"] if job["stage"] == "train"]
    lines = []
    for model in dict.fromkeys(job["model"] for job in jobs):
        counts: dict[int, list[str]] = {}
        for job in jobs:
            if job["model"] == model:
                counts.setdefault(job["gpus"] if job["fits"] else 0, []).append(job["method"])
        lines.append(
            {
                "model": model,
                "methods": {str(n): sorted(set(held)) for n, held in sorted(counts.items())},
            }
        )
    hours = plan["totals"]["gpu_hours"]
    return {"plan": None, "device": plan["gpu"]["name"], "gpu_hours": hours, "fit": lines}


def as_text(found: dict[str, Any]) -> str:
    """The page, in lines of at most 100 characters."""
    return "\n".join(_lines(found))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    here = found["machine"]
    yield "This machine"
    cards = [
        f"{gpu['name']}, {gpu['memory_bytes'] / GIB:.0f} GiB, driver {gpu['driver']}"
        for gpu in here["gpus"]
    ]
    facts = {
        "system": f"{here['system']}, Python {here['python']}",
        "processor": f"{here['cpu']}, {here['cores']} cores",
        "memory": f"{here['memory_bytes'] / GIB:.0f} GiB",
        "disk": f"{here['disk_bytes'] / GIB:.0f} GiB free here",
        "GPUs": "; ".join(cards) or here["driver"] or "none: no NVIDIA driver answers",
        **{use: ", ".join(names) or "none" for use, names in here["tools"].items()},
        "hub token": "there is one"
        if here["hub_token"]
        else "none: hf auth login, for gated models",
    }
    for name, value in facts.items():
        yield from _wrapped(f"  {name:11}", value)
    for finding in found["findings"]:
        yield from _finding(finding)
    yield ""
    yield "What runs here"
    for scale in found["scales"]:
        state = "runs" if scale["runs"] else "lacks something"
        yield from _wrapped(
            f"  {scale['scale']:11}", f"{state}: {scale['command']} ({scale['about']})"
        )
        for finding in scale["findings"]:
            if not finding["met"]:
                yield from _finding(finding)
        yield from _fits(scale, len(here["gpus"]))


def _finding(finding: Finding) -> Iterator[str]:
    sign = "ok" if finding["met"] else "missing"
    yield from _wrapped(f"    {sign:9}", f"{finding['what']}: {finding['found']}")
    if not finding["met"]:
        yield from _wrapped("    mend     ", finding["mend"])


def _fits(scale: dict[str, Any], here: int) -> Iterator[str]:
    if scale["plan"]:
        yield from _wrapped(
            "    plan     ", f"what fits on which GPU, and the hours: {scale['plan']}"
        )
    if scale["fit"]:
        yield from _wrapped("    plan     ", f"about {scale['gpu_hours']:.0f} GPU hours in all")
    for line in scale["fit"]:
        held = [
            f"{', '.join(methods)} do not fit"
            if count == "0"
            else f"{', '.join(methods)} on {count}"
            + (f" ({here} here)" if 0 < here < int(count) else "")
            for count, methods in line["methods"].items()
        ]
        yield from _wrapped(
            "    fits     ", f"{line['model']}: {', '.join(held)} {scale['device']}"
        )


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )
