"""A plan for people: the answer first, then the jobs, disk, downloads, licences, assumptions."""

import textwrap
from collections import defaultdict
from typing import Any

from lorasp.planning.devices import GIB
from lorasp.planning.plan import Plan

WIDTH = 100
STAGES = ("train", "evaluate", "profile")
Job = dict[str, Any]


def as_text(plan: Plan) -> str:
    """The plan in lines of at most 100 characters."""
    parts = [
        _answer(plan),
        _table(plan["jobs"]),
        _section(
            "Disk", [f"{_size(entry['bytes']):>10}  {entry['what']}" for entry in plan["disk"]]
        ),
        _section("Downloads", _downloads(plan["downloads"])),
        _section("Licences that ask for something", _licences(plan["licences"])),
        _section("Assumptions", [f"- {sentence}" for sentence in plan["assumptions"]]),
    ]
    return "\n\n".join(part for part in parts if part)


def _answer(plan: Plan) -> str:
    totals, gpu = plan["totals"], plan["gpu"]
    longest = max(plan["jobs"], key=lambda job: job["seconds"])
    only = f", only {plan['only']}" if plan["only"] else ""
    hours = "GPU hours" if totals["gpu_hours"] else "hours"
    lines = [
        f"{plan['scale']} on {gpu['name']} ({gpu['memory_bytes'] / GIB:.1f} GiB){only}: "
        f"{totals['jobs']:,} jobs, about {_hours(totals['hours'] * 3600)} {hours}",
        *_cannot_start(plan["jobs"], hours),
        f"longest job: {_name(longest)}, {_duration(longest['seconds'])}"
        + (f" on {longest['gpus']} GPUs" if longest["gpus"] > 1 else ""),
    ]
    if totals["gpus_at_once"]:
        most = [job for job in plan["jobs"] if job["gpus"] == totals["gpus_at_once"]]
        why = f" (for {_name(most[0])})" if totals["gpus_at_once"] > 1 else ""
        lines.append(
            f"GPUs needed at once: {totals['gpus_at_once']}{why}; more run more jobs at once"
        )
    stated = totals["disk_stated_bytes"]
    more = f": MORE than the {_size(stated)} of requires.disk_gib"
    fits = totals["disk_bytes"] <= stated
    lines.append(
        f"disk: {_size(totals['disk_bytes'])}{f' of the {_size(stated)} stated' if fits else more}"
    )
    if plan["downloads"]:
        gated = [entry["id"] for entry in plan["downloads"] if entry["gated"]]
        lines.append(
            f"downloads: about {_size(totals['download_bytes'])}"
            + (f", gated: {', '.join(gated)}" if gated else ", nothing gated")
        )
    if plan["unsized"]:
        lines.append(
            f"NOT PLANNED: the runs of {', '.join(plan['unsized'])}, of unknown size until "
            "prepared (lorasp prepare --model NAME)"
        )
    lines += _problems(plan["jobs"])
    return "\n".join(wrapped for line in lines for wrapped in _wrap(line))


def _cannot_start(jobs: list[Job], hours: str) -> list[str]:
    """How much of the sum is for jobs that fit nowhere."""
    large = [job for job in jobs if not job["fits"]]
    count = sum(job["seeds"] for job in large)
    seconds = sum(job["seeds"] * job["seconds"] * max(1, job["gpus"]) for job in large)
    return [f"of these {count:,} jobs, {_hours(seconds)} {hours}, fit nowhere"] if large else []


def _problems(jobs: list[Job]) -> list[str]:
    """What does not fit one GPU, and what would make it fit, jobs with the same reason together."""
    reasons: dict[tuple[str, str, str, bool], int] = defaultdict(int)
    for job in jobs:
        if not job["fits"] or job["gpus"] > 1:
            what = f"{job['stage']} {job['model']} {job['method']}"
            reasons[job["stage"], what, job["because"], job["fits"]] += job["seeds"]
    lines = []
    for (_, what, because, fits), count in reasons.items():
        head = "several GPUs" if fits else "DOES NOT FIT"
        jobs_word = "job" if count == 1 else "jobs"
        lines.append(f"{head}: {what} ({count} {jobs_word}): {because}")
    return lines


def _table(jobs: list[Job]) -> str:
    groups: dict[tuple[Any, ...], list[Job]] = defaultdict(list)
    for job in jobs:
        shape = (job["gpus"], job["micro_batch"] or 0, job["accumulation"] or 0, job["fits"])
        key = (job["model"], STAGES.index(job["stage"]), job["recipe"] or "", *shape)
        groups[key].append(job)
    hours = "GPU h" if any(job["gpus"] for job in jobs) else "hours"
    lines = [_row("recipe", "methods and tasks", "jobs", "GPUs", "micro-batch", "GiB", hours)]
    heading = None
    for key in sorted(groups):
        if heading != key[:2]:
            heading = key[:2]
            lines += ["", f"{key[0]}: {STAGES[key[1]]}"]
        for alike in _alike(groups[key]):
            lines += _rows(alike)
    return "\n".join(lines)


def _alike(group: list[Job]) -> list[list[Job]]:
    """The jobs apart where their memory jumps by more than a tenth."""
    parts: list[list[Job]] = []
    for job in sorted(group, key=lambda job: job["memory_bytes"]):
        if not parts or job["memory_bytes"] > 1.1 * parts[-1][-1]["memory_bytes"]:
            parts.append([])
        parts[-1].append(job)
    return parts


def _rows(group: list[Job]) -> list[str]:
    first = group[0]
    methods = ", ".join(sorted({job["method"] for job in group}))
    tasks = ", ".join(sorted({job["task"] for job in group if job["task"]}))
    told = textwrap.wrap(f"{methods}: {tasks}" if tasks else methods, 42, break_on_hyphens=False)
    micro = f"{first['micro_batch']} x {first['accumulation']}" if first["micro_batch"] else "-"
    memory = max(job["memory_bytes"] for job in group) / GIB
    hours = sum(job["seeds"] * job["seconds"] * max(1, job["gpus"]) for job in group)
    count = str(sum(job["seeds"] for job in group))
    size = f"{memory:.1f}" + ("" if first["fits"] else " !")
    recipe, above = first["recipe"] or "-", []
    if len(recipe) > 8:  # a swept one says what it changes
        recipe, above = "", [f"  {recipe}"]
    row = _row(recipe, told[0], count, str(first["gpus"]), micro, size, _hours(hours))
    return [*above, row, *(_row("", more, "", "", "", "", "").rstrip() for more in told[1:])]


def _row(recipe: str, what: str, jobs: str, gpus: str, micro: str, memory: str, hours: str) -> str:
    return f"  {recipe:<8} {what:<42} {jobs:>5} {gpus:>5} {micro:>12} {memory:>8} {hours:>8}"


def _downloads(entries: list[dict[str, Any]]) -> list[str]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        groups[entry["id"], entry["revision"]].append(entry)
    lines = []
    for (identity, revision), group in groups.items():
        first = group[0]
        size = _size(first["bytes"]) if first["bytes"] else "size unknown"
        licence = first["licence"] or "no licence known"
        lines.append(f"{size:>12}  {identity} at {revision[:12]}, {licence}")
    return lines


def _licences(entries: list[dict[str, Any]]) -> list[str]:
    return [f"- {entry['what']}: {entry['licence']}. To do: {entry['do']}." for entry in entries]


def _section(title: str, lines: list[str]) -> str:
    if not lines:
        return ""
    return "\n".join([title, *(wrapped for line in lines for wrapped in _wrap(f"  {line}"))])


def _wrap(line: str) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_on_hyphens=False) or [""]


def _name(job: Job) -> str:
    parts = (job["stage"], job["model"], job["task"], job["method"], job["recipe"])
    return " ".join(part for part in parts if part)


def _size(count: float) -> str:
    for unit, width in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= width:
            return f"{count / width:.3g} {unit}"
    return f"{count / 1e3:.0f} kB"


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
