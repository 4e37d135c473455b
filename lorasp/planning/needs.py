"""What a plan asks of disk, network and people: bytes, downloads, licences to accept."""

from collections.abc import Iterable
from typing import Any

from lorasp.config import Cell, Config, pick, resolve_task
from lorasp.planning.memory import Step
from lorasp.planning.workload import facts, mean_length, rows_of

WIDTHS = {"fp32": 4, "fp16": 2, "bf16": 2}
TEXT = 4.5  # bytes of text for a token, as parquet keeps it
TOKENS = 16  # bytes of a token, its mask and its label
LOGS = 200_000  # bytes of a run's logs and results
Entry = dict[str, Any]


def sources(config: Config, runs: Iterable[Cell]) -> list[tuple[str, str, Entry]]:
    """(kind, name, entry) of every model and data set that the runs read."""
    runs = list(runs)
    models = {run.model: config["models"][run.model] for run in runs}
    tasks = [resolve_task(config, name) for name in {run.task for run in runs}]
    named = {task[role] for task in tasks for role in ("dataset", "benchmark") if role in task}
    named |= {
        entry["source"]["vocabulary"]["dataset"]
        for entry in models.values()
        if "vocabulary" in entry["source"]
    }
    found = [("model", name, models[name]) for name in sorted(models)]
    return found + [("data set", name, config["datasets"][name]) for name in sorted(named)]


def disk(
    config: Config, runs: list[Cell], jobs: list[Entry], sizes: dict[str, Step]
) -> list[Entry]:
    """Bytes by what they are: {what, bytes}; for runs the weights that they save."""
    models = sum(
        stored_bytes(entry, sizes[name])
        for kind, name, entry in sources(config, runs)
        if kind == "model" and entry["source"]["kind"] != "run"
    )
    data = sum(
        data_bytes(config, name) for kind, name, _ in sources(config, runs) if kind == "data set"
    )
    tokens = sum(
        sum(rows_of(config, resolve_task(config, task)["dataset"]).values())
        * mean_length(config, model, task).tokens
        * TOKENS
        for model, task in {(run.model, run.task) for run in runs}
    )
    trained = [job for job in jobs if job["stage"] == "train"]
    full = [job for job in trained if config["methods"][job["method"]]["family"] == "full"]
    rows = {
        "models": models,
        "data sets, and the hub's copy of them": 2 * data,
        "tokens": tokens,
        "models saved by full fine-tuning": _saved(full),
        "adapters saved by the other methods": _saved(trained) - _saved(full),
        "checkpoints of the largest run: weights and moments, three times, and of the best": max(
            (_checkpoints(config, job) for job in trained), default=0
        ),
        "logs and results": LOGS * len(runs),
    }
    return [{"what": what, "bytes": int(size)} for what, size in rows.items() if size]


def _checkpoints(config: Config, job: Entry) -> int:
    """Most bytes of a run's checkpoints at a time: fp32 weights and AdamW's two moments in each."""
    if job["recipe"] == "none":
        return 0
    names = {kind: job[kind] for kind in ("model", "task", "method")}
    best = pick(config["recipes"][job["recipe"]], **names)["select"] == "best"
    return int(3 * 4 * job["trainable"] * (4 if best else 3))


def _saved(jobs: list[Entry]) -> int:
    return sum(4 * job["trainable"] * job["seeds"] for job in jobs)


def stored_bytes(entry: Entry, size: Step) -> int:
    """Bytes of a model's files: its parameters in the format in which the hub has them."""
    stored = facts()["models"].get(entry["source"].get("id"), {}).get("stored", "fp32")
    return int(size.total * WIDTHS[stored])


def data_bytes(config: Config, name: str) -> int:
    """Bytes of a data set's text, from its rows and assumed tokens; 0 where they are unknown."""
    entry = config["datasets"][name]
    tokens = facts()["datasets"].get(hub_key(entry["source"]), {}).get("tokens", 0)
    return int(sum(rows_of(config, name).values()) * tokens * TEXT)


def hub_key(source: Entry) -> str:
    """Id and configuration of a source, as `facts.yaml` names it."""
    return "/".join(filter(None, (source.get("id"), source.get("config"))))


def downloads(config: Config, runs: list[Cell], sizes: dict[str, Step]) -> list[Entry]:
    """What `prepare` fetches: {what, id, revision, bytes or null, licence or null, gated}."""
    found = []
    for kind, name, entry in sources(config, runs):
        source = entry["source"]
        common = {
            "what": f"{kind} {name}",
            "licence": licence_of(entry)[0],
            "gated": _gated(source),
        }
        if source["kind"] == "hub":
            size = stored_bytes(entry, sizes[name]) if kind == "model" else data_bytes(config, name)
            place = {"id": hub_key(source), "revision": source["revision"], "bytes": size}
            found.append(common | place)
        for artefact in source.get("artefacts", []):
            place = {
                "id": f"{artefact['package']}=={artefact['version']}",
                "revision": artefact["sha256"],
                "bytes": None,
            }
            found.append(common | place)
    return found


def licence_of(entry: Entry) -> tuple[str | None, str | None]:
    """The licence of a model or data set, and what it asks a person to do."""
    identity = entry["source"].get("id", "")
    for start, known in facts()["licences"].items():
        if identity.startswith(start):
            return entry.get("licence", known["licence"]), known.get("do")
    return entry.get("licence"), None


def _gated(source: Entry) -> bool:
    return bool(facts()["models"].get(source.get("id"), {}).get("gated", False))


def licences(config: Config, runs: list[Cell]) -> list[Entry]:
    """The licences that ask for something: {what, licence, do}, each id once."""
    found: dict[str, Entry] = {}
    for _, _, entry in sources(config, runs):
        licence, do = licence_of(entry)
        if do is not None:
            identity = entry["source"]["id"]
            found[identity] = {"what": identity, "licence": licence, "do": do}
    return list(found.values())
