"""The work in a run, before it is prepared: a model's shape, rows of data, tokens in an example."""

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lorasp.config import Cell, Config, cells, data_folder, parse_cell, resolve_model, resolve_task
from lorasp.data.folders import MANIFEST
from lorasp.data.load import load_split
from lorasp.errors import WorkError
from lorasp.public_models import public_models
from lorasp.results import read_json, read_yaml

FACTS = Path(__file__).with_name("facts.yaml")
UNKNOWN_ROWS = 10_000
SUBJECTS = 57  # of MMLU


class Shape(NamedTuple):
    """What decides the size of a model: a folder with its config.json, or None for a public one."""

    folder: Path | None
    layers: int
    vocabulary: int


@cache
def facts() -> dict[str, Any]:
    """The table of public data sets, models and licences."""
    return read_yaml(FACTS)


def all_cells(config: Config, only: str = "") -> list[Cell]:
    """The runs of a configuration, and those that make the models which they start from."""
    runs = cells(config, only)
    found = dict.fromkeys(runs)
    while runs:
        sources = (resolve_model(config, run.model)["source"] for run in runs)
        runs = [parse_cell(config, source["cell"]) for source in sources if source["kind"] == "run"]
        runs = [run for run in runs if run not in found]
        found |= dict.fromkeys(runs)
    return sorted(found)


def shape(config: Config, name: str, scratch: Path) -> Shape:
    """The shape of a model, as prepared; else that of the published model of its name.

    That of a generated one is written below `scratch`. Raises WorkError, with the command that
    mends it, where nothing but its files can tell.
    """
    source = resolve_model(config, name)["source"]
    if source["kind"] == "run":
        return shape(config, source["cell"]["model"], scratch)
    match source["kind"]:
        case "generated":
            folder = _generated(source, scratch / name)
        case "local":
            folder = Path(source["path"])
        case _:
            folder = data_folder(config, "models", name)
            if name in public_models() and not (folder / "config.json").is_file():
                return Shape(None, *_sizes(public_models()[name]["arguments"]))
    if not (folder / "config.json").is_file():
        raise WorkError(
            f"the size of {name} is in none of our tables, and it is not prepared: run "
            f"`lorasp prepare --config config/{config['scale']}.yaml --model {name}` first"
        )
    return Shape(folder, *_sizes(json.loads((folder / "config.json").read_text())))


def untabled(config: Config, only: str = "") -> list[str]:
    """The models of the runs whose size nothing but their own files can tell."""
    names = sorted({run.model for run in all_cells(config, only)})
    kinds = {name: resolve_model(config, name)["source"]["kind"] for name in names}
    return [
        name for name in names if kinds[name] in ("hub", "pypi") and name not in public_models()
    ]


def unsized(config: Config, only: str = "") -> list[str]:
    """The models of unknown size: those, until they are prepared, and what starts from them."""
    hidden = [
        name
        for name in untabled(config, only)
        if not (data_folder(config, "models", name) / "config.json").is_file()
    ]
    names = sorted({run.model for run in all_cells(config, only)})
    return [name for name in names if _origin(config, name) in hidden]


def _origin(config: Config, name: str) -> str:
    """The model that the outcome of a run comes from in the end, else the model itself."""
    source = resolve_model(config, name)["source"]
    return _origin(config, source["cell"]["model"]) if source["kind"] == "run" else name


def _sizes(values: dict[str, Any]) -> tuple[int, int]:
    """Layers (of encoder and decoder together) and entries of the vocabulary."""
    layers = values.get("num_hidden_layers") or values["num_layers"]
    if "d_kv" in values:
        layers += values.get("num_decoder_layers") or layers
    return layers, values["vocab_size"]


def _generated(source: dict[str, Any], folder: Path) -> Path:
    from lorasp.data import tiny_models

    config_class, _ = tiny_models.CLASSES[source["shape"]]
    size = source.get("vocabulary", {}).get("size", tiny_models.VOCABULARY)
    values = tiny_models.SIZES[source["shape"]] | source.get("config", {})
    values |= {"vocab_size": size, "pad_token_id": 0}
    if source["shape"] == "t5":
        values["decoder_start_token_id"] = 0
    config_class(**values).save_pretrained(folder)
    return folder


def rows_of(config: Config, name: str) -> dict[str, int]:
    """Rows of each split of a data set (of a benchmark: over all subjects).

    As prepared; else as generated or published, with the configuration's own limits; else the
    limits. A split that is not there is unknown.
    """
    entry = config["datasets"][name]
    manifest = data_folder(config, name) / MANIFEST
    if manifest.is_file():
        counts: dict[str, int] = {}
        for file, known in read_json(manifest, "manifest")["files"].items():
            if "rows" in known:
                split = Path(file).name.removesuffix(".parquet").split("-")[0]
                counts[split] = counts.get(split, 0) + known["rows"]
        return counts
    if entry["source"]["kind"] == "generated":
        return dict(_generated_rows(entry["source"]["task"]))
    found = dict(_fact(entry).get("rows", {}))
    for split, most in entry.get("rows", {}).items():
        # the limit is for each subject; questions of another source have none or few
        most *= SUBJECTS if found and entry.get("layout") == "mmlu" else 1
        found[split] = min(found.get(split, most), most)
    return found


@cache
def _generated_rows(task: str) -> dict[str, int]:
    from lorasp.data import generated

    counts: Counter[str] = Counter()
    for table, rows in generated.tables(task).items():
        counts[table.split("/")[-1]] += len(rows)
    return counts


def _fact(entry: dict[str, Any]) -> dict[str, Any]:
    """What is known of a data set from its source."""
    table, source = facts()["datasets"], entry["source"]
    match source["kind"]:
        case "hub":
            keys = ["/".join(filter(None, (source["id"], source.get("config"))))]
        case "generated":
            keys = [f"generated/{source['task']}", "generated"]
        case _:
            keys = []
    known: dict[str, Any] = next((table[key] for key in keys if key in table), {})
    return known


class Length(NamedTuple):
    """Mean tokens of an example, and whether they were counted."""

    tokens: float
    counted: bool


@cache
def _counted(folder: Path, split: str, seq2seq: bool) -> float:
    rows = load_split(folder, split)
    lengths = rows["length"]
    mean = sum(lengths) / len(lengths)
    if not seq2seq:
        return float(mean)
    return float(mean + sum(len(labels) for labels in rows["labels"]) / len(lengths)) / 2


def mean_length(config: Config, model: str, task: str) -> Length:
    """Tokens in a training example of a task: counted where it is tokenised for the model."""
    resolved = resolve_task(config, task)
    folder = data_folder(config, "tokens", model, task)
    if (folder / MANIFEST).is_file():
        seq2seq = config["models"][model]["architecture"] == "seq2seq"
        return Length(_counted(folder, resolved["train"], seq2seq), True)
    fact = _fact(config["datasets"][resolved["dataset"]])
    return Length(
        min(fact.get("tokens", resolved["max_length"] / 2), resolved["max_length"]), False
    )


def prompt_length(config: Config, task: dict[str, Any]) -> float:
    """Tokens of a question of the task's benchmark, its five worked examples included."""
    return float(_fact(config["datasets"][task["benchmark"]]).get("tokens", 600))


class Rows(NamedTuple):
    """Examples that a run trains on in an epoch, chooses its epoch by, and is scored on."""

    train: int
    select: int
    score: int
    unknown: list[str]


def rows_of_task(config: Config, task: dict[str, Any]) -> Rows:
    """The rows of a task; `unknown` names the data sets of which a size had to be assumed."""
    own = rows_of(config, task["dataset"])
    scored = rows_of(config, task["benchmark"]) if "benchmark" in task else own
    splits = ["test"] if "benchmark" in task else task["evaluate"]
    chosen = task["evaluate"] if task["family"] in ("classification", "regression") else []
    chosen = chosen or ([task["validation"]] if "validation" in task else [])
    unknown = [] if task["train"] in own else [task["dataset"]]
    if not all(split in scored for split in splits):
        unknown.append(task.get("benchmark", task["dataset"]))
    return Rows(
        own.get(task["train"], UNKNOWN_ROWS),
        sum(own.get(split, UNKNOWN_ROWS // 10) for split in chosen),
        sum(scored.get(split, UNKNOWN_ROWS // 10) for split in splits),
        unknown,
    )
