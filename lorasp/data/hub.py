"""The source `hub`: data sets and models of the Hugging Face hub at a pinned revision."""

import re
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset

from lorasp.data import local
from lorasp.data.download import fetch, listing, matching
from lorasp.data.mmlu import SPLITS, SUBJECTS
from lorasp.errors import WorkError
from lorasp.results import parse_yaml

Source = dict[str, Any]
CARD = "README.md"
NO_CARD = "{} has a head that is no card of a data set:"
# {split}-00000-of-00002.parquet, with a hash of the content behind it in older repositories
SHARD = re.compile(r"(?:.*/)?(?P<split>[^/]+)-\d{5}-of-\d{5}[^/]*\.parquet")


def tables(source: Source, layout: str, folder: Path, real: bool) -> dict[str, Dataset]:
    """Every split of a data set (`split`), or of each subject of a benchmark (`subject/split`).

    What is downloaded stays in `folder`. Parquet files alone are taken: a repository's scripts and
    archives are never looked at. Raises WorkError where the revision has no such configuration, or
    a stand-in for the hub answers where the data must be `real`.
    """
    place = fetch(source, "dataset", [CARD], folder, real)
    if layout == "mmlu":
        files = {
            f"{subject}/{split}": paths
            for subject in SUBJECTS
            for split, paths in _files(source, place, subject).items()
            if split in SPLITS
        }
    else:
        files = _files(source, place, source.get("config"))
    fetch(source, "dataset", [path for paths in files.values() for path in paths], folder)
    return {
        table: _flat(local.read_tables([place / path for path in paths]))
        for table, paths in files.items()
    }


def _files(source: Source, place: Path, config: str | None) -> dict[str, list[str]]:
    """The parquet files of each split of a configuration, as the data set's card names them.

    A card without a list of configurations leaves it to the names of the files.
    """
    tables = matching(listing(source, "dataset", place), ["**/*.parquet"])
    configs = _configs(place / CARD)
    if not configs and config is None:
        found: dict[str, list[str]] = {}
        for entry in tables:
            if shard := SHARD.fullmatch(entry.path):
                found.setdefault(shard["split"], []).append(entry.path)
    else:
        name = config or next(
            (name for name, entry in configs.items() if entry.get("default")), "default"
        )
        if name not in configs:
            raise WorkError(
                f"{source['id']} at revision {source['revision']} has no configuration {name!r}; "
                f"its card lists {', '.join(sorted(configs)) or 'none'}"
            )
        found = {
            split: [entry.path for entry in matching(tables, patterns)]
            for split, patterns in _patterns(
                configs[name].get("data_files", []), place / CARD
            ).items()
        }
    if not found or not all(found.values()):
        raise WorkError(
            f"{source['id']} at revision {source['revision']} has no parquet files of "
            f"{config or 'its data'}: pin a revision that has them"
        )
    return found


def _patterns(data_files: Any, card: Path) -> dict[str, list[str]]:
    """The patterns of each split, out of the forms that a card may write them in."""
    if not isinstance(data_files, list) or not all(isinstance(part, dict) for part in data_files):
        data_files = [{"split": "train", "path": data_files}]
    found = {}
    for part in data_files:
        split, paths = part.get("split"), part.get("path")
        paths = [paths] if isinstance(paths, str) else paths
        named = isinstance(split, str) and isinstance(paths, list)
        if not named or not all(isinstance(path, str) for path in paths):
            raise WorkError(f"{NO_CARD.format(card)} {part} names no split and its path")
        found[split] = paths
    return found


def _configs(card: Path) -> dict[str, dict[str, Any]]:
    """The configurations in the YAML head of a repository's README.md; none where it has none."""
    text = card.read_text("utf-8", "replace") if card.is_file() else ""
    head = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        listed = (parse_yaml(head[1]) or {}).get("configs", []) if head else []
        return {entry["config_name"]: entry for entry in listed}
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise WorkError(f"{NO_CARD.format(card)} {reason}") from error


def _flat(rows: Dataset) -> Dataset:
    """WMT's one column `translation` of {en, ro} as two columns."""
    if "translation" not in rows.column_names:
        return rows
    rows = rows.flatten()
    return rows.rename_columns({name: name.split(".")[-1] for name in rows.column_names})


def write_model(place: Path, source: Source, folder: Path, real: bool) -> None:
    """Download a model's configuration, safetensors weights and tokenizer.

    The download stays in `folder` and its files are linked: to make the model again costs no second
    one. Raises WorkError where the revision has no safetensors weights (pickled ones can run code
    and are not taken), or a stand-in for the hub answers where the model must be `real`.
    """
    download = fetch(source, "model", local.MODEL_FILES, folder, real)
    if not any(file for pattern in local.WEIGHTS for file in download.glob(pattern)):
        raise WorkError(
            f"{source['id']} has no safetensors weights at revision {source['revision']}, and "
            "pickled weights are not taken: pin a revision that has them"
        )
    local.write_model(place, download)
