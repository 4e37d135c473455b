"""Open a prepared folder, having checked every byte of it; shared by all later stages."""

from pathlib import Path
from typing import TYPE_CHECKING

from lorasp.data.folders import MANIFEST, Manifest, damage
from lorasp.errors import WorkError
from lorasp.results import read_json

if TYPE_CHECKING:
    from datasets import Dataset


def check_folder(folder: Path) -> Manifest:
    """The manifest of a prepared folder in which every file has its size and sha256.

    Raises WorkError naming the missing or damaged file and the command that mends it.
    """
    mend = f"run `{_command(folder)}`"
    if not (folder / MANIFEST).is_file():
        raise WorkError(f"{folder} is not prepared: {mend}")
    manifest = read_json(folder / MANIFEST, "manifest")
    if lines := damage(folder, manifest):
        if read_json(folder / MANIFEST, "manifest") != manifest:  # prepared anew meanwhile
            return check_folder(folder)
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise WorkError(f"{lines[0]}{more}: {mend}")
    return manifest


def _command(folder: Path) -> str:
    """The line that makes a folder, read from its place: see `lorasp.config.data_folder`."""
    match folder.parts:
        case (*_, scale, "tokens", model, task):
            names = f"--model {model} --task {task}"
        case (*_, scale, "models", model):
            names = f"--model {model}"
        case (*_, scale, dataset):
            names = f"--dataset {dataset}"
        case _:
            raise ValueError(f"{folder} is not <data>/<scale>/<name>")
    return f"lorasp prepare --config config/{scale}.yaml {names}"


def load_split(folder: Path, split: str) -> "Dataset":
    """One split of a data set (`{split}.parquet`) or of tokens (`{split}/`), with no cache outside.

    Raises WorkError where there is no such split, naming those that there are.
    """
    import pyarrow.parquet
    from datasets import Dataset, load_from_disk

    if (folder / split).is_dir():
        return load_from_disk(str(folder / split))
    file = folder / f"{split}.parquet"
    if not file.is_file():
        raise WorkError(f"{folder} has no split {split!r}; it has {', '.join(splits(folder))}")
    return Dataset(pyarrow.parquet.read_table(file, memory_map=True))


def splits(folder: Path) -> list[str]:
    """The names of the splits in a prepared folder of a data set or of tokens."""
    tables = {file.stem for file in folder.glob("*.parquet")}
    tokens = {file.parent.name for file in folder.glob("*/state.json")}
    return sorted(tables | tokens)
