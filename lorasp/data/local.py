"""The source `local`: tables or a model in a folder of the user's, inside the project."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets import Dataset

from lorasp.errors import WorkError


def _read_csv(file: Path) -> pa.Table:
    return pa.csv.read_csv(file, parse_options=pa.csv.ParseOptions(newlines_in_values=True))


READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".parquet": pa.parquet.read_table,
    ".csv": _read_csv,
    ".jsonl": pa.json.read_json,
}
SHARD = re.compile(r"-\d{5}-of-\d{5}$")
# Weights as safetensors only: a pickle can run code when it is read.
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
MODEL_FILES = (
    *WEIGHTS,
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


def table_files(path: str) -> dict[str, list[Path]]:
    """The files of each table: `{split}.parquet|csv|jsonl`, with a folder above it for a subject.

    A single file is the split `train`; the hub's `{split}-00000-of-00002.parquet` are one split.
    Raises WorkError where there is nothing.
    """
    place = Path(path)
    if place.is_file() and place.suffix in READERS:
        return {"train": [place]}
    found: dict[str, list[Path]] = {}
    for file in sorted(place.rglob("*")):
        if file.suffix in READERS:
            table = SHARD.sub("", str(file.relative_to(place).with_suffix("")))
            found.setdefault(table, []).append(file)
    if not found:
        raise WorkError(
            f"{path} holds no data; it must be a folder of {{split}}.parquet, {{split}}.csv or "
            "{split}.jsonl files, or one such file"
        )
    return found


def tables(path: str) -> dict[str, Dataset]:
    """Every table of a folder or file. Raises WorkError naming a file that cannot be read."""
    return {table: read_tables(files) for table, files in table_files(path).items()}


def read_tables(files: list[Path]) -> Dataset:
    """Files one after the other as one table. Raises WorkError naming what cannot be read."""
    try:
        joined = pa.concat_tables([_read(file) for file in files], promote_options="default")
        return Dataset(joined)
    except pa.ArrowException as error:
        names = ", ".join(map(str, files))
        raise WorkError(f"the columns of {names} do not fit together: {error}") from error


def _read(file: Path) -> pa.Table:
    try:
        table = READERS[file.suffix](file)
        _ = table.column_names  # decodes them, which fails where the text is not UTF-8
        return table
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise WorkError(f"cannot read {file} as {file.suffix[1:]}: {reason}") from error


def model_files(folder: Path) -> list[Path]:
    """The files of a Hugging Face model folder that are taken; anything else in it stays.

    Raises WorkError where the configuration, the safetensors weights or the tokenizer are missing.
    """
    files = sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern)})
    for part, names in {
        "configuration": ("config.json",),
        "weights": WEIGHTS,
        "tokenizer": TOKENIZERS,
    }.items():
        if not any(file.match(name) for file in files for name in names):
            raise WorkError(f"{folder} is no model: it has no {part} ({' or '.join(names)})")
    return files


def write_model(place: Path, folder: Path) -> None:
    """Hard links of a model's files, or copies where the file system has no links."""
    for file in model_files(folder):
        try:
            os.link(file.resolve(), place / file.name)
        except OSError:
            shutil.copy2(file, place / file.name)
