"""The plan of a scale: `lorasp plan --scale paper --gpu h100-80gb`."""

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from lorasp.config import Cell, Config, cells, resolve_task
from lorasp.errors import UsageError
from lorasp.planning import hours, memory, needs
from lorasp.planning.devices import GIB, Device, device
from lorasp.planning.jobs import Ground, jobs_of, profile_job, profiled, questions, reference
from lorasp.planning.lookup import made_from
from lorasp.planning.workload import (
    UNKNOWN_ROWS,
    all_cells,
    mean_length,
    rows_of_task,
    shape,
    unsized,
)
from lorasp.results import provenance, write_json

Plan = dict[str, Any]


def make_plan(
    config: Config,
    only: str = "",
    gpu: str | None = None,
    utilisation: float = hours.UTILISATION,
) -> Plan:
    """The jobs of a scale, or of those runs of it that `only` keeps, and what they take.

    Runs of a model whose size is not known yet are left out, and the model is named in `unsized`.
    Raises UsageError for an unknown name or GPU, WorkError where no model's size can be known.
    """
    if not 0 < utilisation <= 1:
        raise UsageError(f"utilisation is {utilisation:g}; allowed is more than 0 and at most 1")
    target = device(config, gpu)
    everything, left_out = all_cells(config, only), unsized(config, only)
    # where nothing is known, `shape` says what to do
    runs = [run for run in everything if run.model not in left_out] or everything
    profiles = profiled(config, [run for run in cells(config, only) if run.model not in left_out])
    with tempfile.TemporaryDirectory() as scratch:
        names = sorted({run.model for run in runs})
        shapes = {name: shape(config, name, Path(scratch)) for name in names}
        found = memory.answers(config, questions(config, runs, profiles), shapes, target)
    ground = Ground(config, target, utilisation, shapes, found)
    groups: dict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for run in runs:
        groups[run.model, run.task, run.method, run.recipe].append(run)
    jobs = [job for group in groups.values() for job in jobs_of(ground, group)]
    jobs += [profile_job(ground, profile) for profile in profiles]
    sizes = {name: reference(ground, name) for name in names}
    disk = needs.disk(config, runs, jobs, sizes)
    downloads = needs.downloads(config, runs, sizes)
    return {
        "scale": config["scale"],
        "only": only,
        "unsized": left_out,
        "gpu": target,
        "utilisation": utilisation,
        "assumptions": assumptions(config, runs, target, utilisation),
        "made_from": made_from(config),
        "provenance": provenance(),
        "jobs": jobs,
        "disk": disk,
        "downloads": downloads,
        "licences": needs.licences(config, runs),
        "totals": totals(config, jobs, disk, downloads),
    }


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan where the workflow and the report look for it."""
    write_json(path, plan, "plan")


def totals(config: Config, jobs: list[Any], disk: list[Any], downloads: list[Any]) -> Plan:
    """The sums over all jobs and seeds; hours are those of one device after another."""
    busy = sum(job["seeds"] * job["seconds"] * max(1, job["gpus"]) for job in jobs) / 3600
    on_gpu = any(job["gpus"] for job in jobs)
    return {
        "jobs": sum(job["seeds"] for job in jobs),
        "hours": round(busy, 2),
        "gpu_hours": round(busy, 2) if on_gpu else 0,
        "longest_seconds": max(job["seconds"] for job in jobs),
        "gpus_at_once": max(job["gpus"] for job in jobs),
        "flops": sum(job["seeds"] * job["flops"] for job in jobs),
        "disk_bytes": sum(entry["bytes"] for entry in disk),
        "disk_stated_bytes": int(config["requires"]["disk_gib"] * GIB),
        "download_bytes": sum(entry["bytes"] or 0 for entry in downloads),
        "unfit": sum(job["seeds"] for job in jobs if not job["fits"]),
        "sharded": sum(job["seeds"] for job in jobs if job["gpus"] > 1),
    }


def assumptions(config: Config, runs: list[Cell], target: Device, utilisation: float) -> list[str]:
    """What the numbers rest on, a sentence each."""
    kind = "cpu" if target["name"] == "cpu" else "gpu"
    once, each = hours.LAUNCH[kind]
    rate = target["tflops"][config["runtime"]["precision"]]
    pairs = sorted({(run.model, run.task) for run in runs})
    guessed = sorted(
        {task for model, task in pairs if not mean_length(config, model, task).counted}
    )
    tasks = [resolve_task(config, task) for task in sorted({task for _, task in pairs})]
    unknown = sorted({name for task in tasks for name in rows_of_task(config, task).unknown})
    families = {task["family"] for task in tasks}
    beside = (
        f"{memory.FRAGMENTS:.0%} for fragments, {memory.CONTEXT / GIB:g} GiB for the CUDA context"
        if kind == "gpu"
        else f"{memory.PROCESS / GIB:g} GiB for the process"
    )
    sentences = {
        f"Speed: {utilisation:.0%} of the {rate:g} TFLOP/s ({config['runtime']['precision']}) of "
        f"{target['name']} ({target['source']}); a job takes {hours.STARTUP[kind]:g} s to start, "
        f"and {hours.STORAGE / 1e9:g} GB/s to read and write weights.": True,
        f"A small step is bound by its launches: at least {1e3 * once:g} ms, and {1e3 * each:g} ms "
        "a layer, for each micro-batch; a third of that for a forward pass alone.": True,
        "FLOPs are those of a simulated step at the task's longest length, and in proportion to "
        f"the length: mean tokens, and {hours.PADDING - 1:.0%} of padding.": True,
        "The peak of memory is that of a simulated step at the longest length, or on the straight "
        f"line between two; beside it {beside}.": True,
        "Evaluation holds the weights and what two layers and the logits take: within a factor of "
        "two.": True,
        f"A scheduler is asked for {hours.MARGIN} times the estimate and {hours.LEAST_MINUTES} "
        "minutes.": True,
        "Several GPUs share weights, gradients and moments evenly (FSDP) and each gathers two "
        "layers at a time; activations and copies in another format are not shared.": kind == "gpu",
        "Mean lengths are assumed (25 % either way) until a task is tokenised: "
        f"{', '.join(guessed)}.": bool(guessed),
        f"Rows of {', '.join(unknown)} are unknown until prepared: {UNKNOWN_ROWS:,} to train on, a "
        "tenth of it in every other split.": bool(unknown),
        "Beam search reads all weights once for every token of a batch, over twice the mean "
        "length.": "translation" in families,
        "MMLU takes one forward pass a question, with its five worked examples.": "instruction"
        in families,
        "Disk: models in the hub's format; text 4.5 bytes a token, kept twice; full fine-tuning "
        "saves its whole model in fp32 for every run.": True,
    }
    return [sentence for sentence, holds in sentences.items() if holds]
