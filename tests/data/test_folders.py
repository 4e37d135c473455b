"""Prepared folders: whole or absent, with a manifest by which damage is noticed and mended."""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from lorasp.config import data_folder
from lorasp.data import folders
from lorasp.data.load import check_folder, load_split
from lorasp.data.prepare import forget_damaged, prepare_dataset, prepare_model, prepare_tokens
from lorasp.errors import UsageError, WorkError

SOURCE = {"kind": "generated", "task": "demo"}


def make(folder: Path, text: str = "hello", **source: str) -> Path:
    with folders.building(folder, SOURCE | source, {}) as place:
        (place / "deep").mkdir()
        (place / "deep" / "a.txt").write_text(text)
        (place / "b.txt").write_text("second")
    return folder


def test_the_manifest_tells_name_size_and_sha256_of_every_file(tmp_path: Path) -> None:
    folder = make(tmp_path / "data" / "smoke" / "demo")
    manifest = check_folder(folder)
    assert manifest["source"] == SOURCE
    assert manifest["files"] == {
        "b.txt": {"bytes": 6, "sha256": hashlib.sha256(b"second").hexdigest()},
        "deep/a.txt": {"bytes": 5, "sha256": hashlib.sha256(b"hello").hexdigest()},
    }
    assert os.stat(folder).st_mode & 0o777 == 0o755


def test_equal_content_gives_an_equal_manifest(config: dict[str, Any]) -> None:
    def everything() -> dict[str, bytes]:
        prepare_dataset(config, "sst2")
        prepare_model(config, "roberta-tiny")
        prepare_tokens(config, "roberta-tiny", "sst2")
        root = Path(config["data_dir"])
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.json")}

    first = everything()
    time.sleep(0.01)
    config["data_dir"] = "elsewhere"
    assert everything() == first
    tokens = json.loads(first["smoke/tokens/roberta-tiny/sst2/manifest.json"])
    assert tokens["files"]["train/data-00000-of-00001.arrow"]["rows"] == 64
    table = json.loads(first["smoke/sst2/manifest.json"])
    assert table["files"]["validation.parquet"]["rows"] == 32


def test_the_revision_is_what_pins_the_source(tmp_path: Path) -> None:
    hub = check_folder(make(tmp_path / "smoke" / "a", revision="f" * 40))
    assert hub["revision"] == "f" * 40
    own = check_folder(make(tmp_path / "smoke" / "b"))
    assert own["revision"] == own["fingerprint"] == hub["fingerprint"]
    other = check_folder(make(tmp_path / "smoke" / "c", text="other"))
    assert other["fingerprint"] != own["fingerprint"]


def test_an_exception_half_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), folders.building(tmp_path / "demo", SOURCE, {}) as place:
        (place / "a.txt").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_failed_second_making_leaves_the_first(tmp_path: Path) -> None:
    folder = make(tmp_path / "smoke" / "demo")
    full = pytest.raises(WorkError, match=r"cannot make .*demo.*No space left")
    with full, folders.building(folder, SOURCE, {}) as place:
        (place / "a.txt").write_text("half")
        raise OSError(28, "No space left on device")
    assert check_folder(folder)["files"].keys() == {"b.txt", "deep/a.txt"}
    assert [path.name for path in folder.parent.iterdir()] == ["demo"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = make(tmp_path / "smoke" / "demo")
    (folder / "stray.txt").write_text("not of the manifest")
    make(folder, text="again")
    assert (folder / "deep" / "a.txt").read_text() == "again"
    assert sorted(path.name for path in folder.iterdir()) == ["b.txt", "deep", "manifest.json"]
    assert [path.name for path in folder.parent.iterdir()] == ["demo"]


def test_a_valid_folder_is_left_alone(
    config: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    manifest = prepare_dataset(config, "sst2")
    before = manifest.stat().st_mtime_ns
    capsys.readouterr()
    assert prepare_dataset(config, "sst2") == manifest
    assert manifest.stat().st_mtime_ns == before
    assert "data/smoke/sst2 is complete; nothing to do" in capsys.readouterr().err


def test_a_changed_source_is_made_again(
    config: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    folder = prepare_dataset(config, "sst2").parent
    config["datasets"]["sst2"]["rows"] = {"train": 10}
    prepare_dataset(config, "sst2")
    assert "source has changed" in capsys.readouterr().err
    assert len(load_split(folder, "train")) == 10


def same_size(file: Path) -> None:
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])


def unseen(file: Path) -> None:
    """Another content of the same size and an old date: as when a disk fails."""
    same_size(file)
    os.utime(file, (0, 0))


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")


@pytest.mark.parametrize("harm", [same_size, unseen, longer, Path.unlink])
def test_damage_is_named_and_mended(
    config: dict[str, Any], capsys: pytest.CaptureFixture, harm: Any
) -> None:
    folder = prepare_dataset(config, "sst2").parent
    file = folder / "train.parquet"
    good = file.read_bytes()
    harm(file)
    with pytest.raises(WorkError) as error:
        check_folder(folder)
    assert "sst2/train.parquet is" in str(error.value)
    assert "`lorasp prepare --config config/smoke.yaml --dataset sst2`" in str(error.value)
    prepare_dataset(config, "sst2")
    assert "sst2/train.parquet is" in capsys.readouterr().err
    assert file.read_bytes() == good
    check_folder(folder)


def test_an_unreadable_manifest_is_made_again(config: dict[str, Any]) -> None:
    manifest = prepare_dataset(config, "sst2")
    manifest.write_text('{"schema": 1')
    with pytest.raises(WorkError, match="is not JSON"):
        check_folder(manifest.parent)
    prepare_dataset(config, "sst2")
    check_folder(manifest.parent)


@pytest.mark.parametrize(
    ("parts", "command"),
    [
        (("cola",), "--dataset cola"),
        (("models", "tiny"), "--model tiny"),
        (("tokens", "tiny", "cola"), "--model tiny --task cola"),
    ],
)
def test_what_is_not_prepared_is_told_with_its_command(
    config: dict[str, Any], parts: tuple[str, ...], command: str
) -> None:
    with pytest.raises(WorkError) as error:
        check_folder(data_folder(config, *parts))
    assert f"not prepared: run `lorasp prepare --config config/smoke.yaml {command}`" in str(
        error.value
    )


def test_forget_damaged_deletes_the_manifest_alone(tmp_path: Path) -> None:
    whole = make(tmp_path / "smoke" / "whole")
    missing = make(tmp_path / "smoke" / "missing")
    (missing / "b.txt").unlink()
    changed = make(tmp_path / "smoke" / "models" / "changed")
    same_size(changed / "b.txt")
    later(changed / "b.txt", changed)
    touched = make(tmp_path / "smoke" / "touched")
    later(touched / "b.txt", touched)
    broken = make(tmp_path / "smoke" / "broken")
    (broken / "manifest.json").write_text("{")
    lines = forget_damaged(tmp_path)
    assert len(lines) == 3
    assert any(f"{missing}/b.txt is missing" in line for line in lines)
    assert any(f"{changed}/b.txt is damaged: sha256" in line for line in lines)
    assert any(f"{broken}/manifest.json is not JSON" in line for line in lines)
    left = {path.parent for path in tmp_path.rglob("manifest.json")}
    assert left == {whole, touched}
    assert forget_damaged(tmp_path) == [] == forget_damaged(tmp_path / "nowhere")


def later(file: Path, folder: Path) -> None:
    written = (folder / "manifest.json").stat().st_mtime + 1
    os.utime(file, (written, written))


def test_forget_damaged_reads_no_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "smoke" / "demo")

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(folders, "sha256_of", refuse)
    assert forget_damaged(tmp_path) == []


def test_a_missing_split_is_told_with_those_there_are(config: dict[str, Any]) -> None:
    folder = prepare_dataset(config, "mnli").parent
    with pytest.raises(WorkError, match="no split 'dev'; it has train, validation_matched"):
        load_split(folder, "dev")


def test_rows_take_a_stable_subset_of_a_split(config: dict[str, Any]) -> None:
    whole = load_split(prepare_dataset(config, "sst2").parent, "train").to_list()
    config["datasets"]["sst2"]["rows"] = {"train": 20}
    some = load_split(prepare_dataset(config, "sst2").parent, "train").to_list()
    assert len(some) == 20 and [row for row in whole if row in some] == some
    assert some != whole[:20]
    config["datasets"]["mmlu"]["rows"] = {"dev": 2}
    manifest = check_folder(prepare_dataset(config, "mmlu").parent)
    sizes = {entry["rows"] for name, entry in manifest["files"].items() if "/dev" in name}
    assert sizes == {2}
    config["datasets"]["sst2"]["rows"] = {"trian": 20}
    with pytest.raises(
        UsageError, match=r"rows names the split 'trian'; the source has train, val"
    ):
        prepare_dataset(config, "sst2")
