"""The hub's clients replaced: what they are asked, what is written, what each failure says."""

from pathlib import Path
from typing import Any

import datasets
import httpx2
import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

from lorasp.config import data_folder
from lorasp.data import hub
from lorasp.data.load import check_folder, load_split, splits
from lorasp.data.mmlu import SUBJECTS
from lorasp.data.prepare import prepare_dataset, prepare_model
from lorasp.errors import WorkError

PIN = {"kind": "hub", "id": "owner/thing", "revision": "a" * 40}


def answers(monkeypatch: pytest.MonkeyPatch, tables: dict[str, list[dict[str, Any]]]) -> list[Any]:
    asked: list[Any] = []

    def load_dataset(name: str, config: str | None, revision: str) -> datasets.DatasetDict:
        asked.append((name, config, revision))
        rows = {split: datasets.Dataset.from_list(table) for split, table in tables.items()}
        return datasets.DatasetDict(rows)

    monkeypatch.setattr(hub, "load_dataset", load_dataset)
    return asked


def test_a_data_set_at_its_revision(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"sentence": "a", "label": 1, "idx": 0}]
    asked = answers(monkeypatch, {"train": rows, "validation": rows * 2})
    config["datasets"]["sst2"] = {"source": PIN | {"config": "sst2"}}
    folder = prepare_dataset(config, "sst2").parent
    assert asked == [("owner/thing", "sst2", "a" * 40)]
    assert load_split(folder, "validation").to_list() == rows * 2
    assert check_folder(folder)["revision"] == "a" * 40


def test_wmts_one_column_becomes_two(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, {"test": [{"translation": {"en": "cat", "ro": "pisică"}}]})
    config["datasets"]["wmt"] = {"source": PIN}
    folder = prepare_dataset(config, "wmt").parent
    assert load_split(folder, "test").to_list() == [{"en": "cat", "ro": "pisică"}]


def test_mmlu_is_asked_for_by_subject(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"question": "why?", "subject": "s", "choices": list("abcd"), "answer": 0}
    asked = answers(monkeypatch, {"auxiliary_train": [row], "dev": [row], "test": [row]})
    config["datasets"]["mmlu"] = {"source": PIN, "layout": "mmlu"}
    manifest = check_folder(prepare_dataset(config, "mmlu").parent)
    assert [config for _, config, _ in asked] == SUBJECTS
    assert len(manifest["files"]) == 2 * 57 + 1
    assert splits(data_folder(config, "mmlu")) == []


def response(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "https://example.org"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OfflineModeIsEnabled("offline"), "hub cannot be reached for owner/thing at revision aaa"),
        (LocalEntryNotFoundError("no"), "connect this machine and unset HF_HUB_OFFLINE, or run"),
        (httpx2.ConnectError("no route"), r"cannot be reached .*\(ConnectError\)"),
        (GatedRepoError("gated", response=response(403)), "is gated: accept its licence .*hf auth"),
        (
            RevisionNotFoundError("none", response=response(404)),
            "the hub has no owner/thing at rev",
        ),
        (datasets.exceptions.DatasetNotFoundError("none"), "the hub has no owner/thing at rev"),
        (
            ValueError("BuilderConfig 'x' not\nfound."),
            "cannot be loaded: BuilderConfig 'x' not fou",
        ),
        (OSError(28, "No space left on device", "/x"), "cannot make .*m: No space left on device"),
    ],
)
def test_each_failure_is_one_sentence(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    config["models"]["m"] = {"source": PIN}
    with pytest.raises(WorkError, match=message) as caught:
        prepare_model(config, "m")
    assert "\n" not in str(caught.value)
    assert not list(data_folder(config, "models").iterdir())


def test_offline_without_a_stand_in(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    config["models"]["m"] = config["datasets"]["d"] = {"source": PIN}
    for prepare, name in ((prepare_model, "m"), (prepare_dataset, "d")):
        with pytest.raises(WorkError, match="hub cannot be reached for owner/thing"):
            prepare(config, name)


def test_a_model_without_pickles(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made = prepare_model(config, "roberta-tiny").parent
    names = [file.name for file in made.iterdir()]

    def download(name: str, revision: str, allow_patterns: list[str], local_dir: Path) -> None:
        assert (name, revision) == ("owner/thing", "a" * 40)
        assert not [pattern for pattern in allow_patterns if pattern.endswith((".bin", ".pt", "*"))]
        local_dir.mkdir(parents=True, exist_ok=True)
        for file in names:
            (local_dir / file).write_bytes((made / file).read_bytes())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    config["models"]["m"] = {"source": PIN}
    folder = prepare_model(config, "m").parent
    assert check_folder(folder)["files"] == check_folder(made)["files"]
    names.remove("model.safetensors")
    (
        Path(config["data_dir"]) / "artefacts" / f"owner--thing@{'a' * 40}" / "model.safetensors"
    ).unlink()
    (folder / "config.json").unlink()
    with pytest.raises(
        WorkError, match=f"owner/thing has no safetensors weights at revision {'a' * 40}"
    ):
        prepare_model(config, "m")
