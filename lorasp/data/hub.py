"""The source `hub`: data sets and models of the Hugging Face hub at a pinned revision."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2  # the HTTP client of huggingface-hub
import huggingface_hub
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from lorasp.data import local
from lorasp.data.mmlu import SPLITS, SUBJECTS
from lorasp.errors import WorkError

Source = dict[str, Any]


@contextmanager
def _reaching(source: Source) -> Iterator[None]:
    """Turn what the hub's clients raise into one sentence."""
    what = f"{source['id']} at revision {source['revision']}"
    try:
        yield
    except GatedRepoError as error:
        raise WorkError(
            f"{what} is gated: accept its licence on its page of the hub, then `hf auth login`"
        ) from error
    except (DatasetNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise WorkError(f"the hub has no {what}, or only for those who log in") from error
    except ValueError as error:  # a configuration that the data set does not have
        raise WorkError(f"{what} cannot be loaded: {' '.join(str(error).split())}") from error
    except (OSError, httpx2.HTTPError) as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise  # the disk, not the network
        raise WorkError(
            f"the Hugging Face hub cannot be reached for {what} "
            f"({type(error).__name__}): connect this machine and unset HF_HUB_OFFLINE, or run "
            "`make mini`, which needs no hub"
        ) from error


def tables(source: Source, layout: str) -> dict[str, Dataset]:
    """Every split of a data set (`split`), or of each subject of a benchmark (`subject/split`)."""
    with _reaching(source):
        if layout == "mmlu":
            return {
                f"{subject}/{split}": rows
                for subject in SUBJECTS
                for split, rows in _load(source, subject).items()
                if split in SPLITS
            }
        return _load(source, source.get("config"))


def _load(source: Source, config: str | None) -> dict[str, Dataset]:
    loaded = load_dataset(source["id"], config, revision=source["revision"])
    return {split: _flat(rows) for split, rows in loaded.items()}


def _flat(rows: Dataset) -> Dataset:
    """WMT's one column `translation` of {en, ro} as two columns."""
    if "translation" not in rows.column_names:
        return rows
    rows = rows.flatten()
    return rows.rename_columns({name: name.split(".")[-1] for name in rows.column_names})


def write_model(place: Path, source: Source, folder: Path) -> None:
    """Download a model's configuration, safetensors weights and tokenizer.

    The download stays in `folder` and its files are linked: an interrupted one goes on from there,
    and to make the model again costs no second download. Raises WorkError where the revision has no
    safetensors weights: pickled ones can run code and are not taken.
    """
    download = folder / f"{source['id'].replace('/', '--')}@{source['revision']}"
    with _reaching(source):
        huggingface_hub.snapshot_download(
            source["id"],
            revision=source["revision"],
            allow_patterns=list(local.MODEL_FILES),
            local_dir=download,
        )
    if not any(file for pattern in local.WEIGHTS for file in download.glob(pattern)):
        raise WorkError(
            f"{source['id']} has no safetensors weights at revision {source['revision']}, and "
            "pickled weights are not taken: pin a revision that has them"
        )
    local.write_model(place, download)
