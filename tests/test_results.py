"""Files that stages hand to each other: whole or not at all, valid, with their provenance."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorasp import results
from lorasp.errors import WorkError
from lorasp.results import atomic, fingerprint, provenance, read_json, sha256_of, write_json

MANIFEST: dict[str, Any] = {
    "source": {"kind": "generated", "task": "mrpc"},
    "inputs": {},
    "revision": "a" * 64,
    "files": {"train.parquet": {"sha256": "b" * 64, "bytes": 12, "rows": 3}},
    "fingerprint": "c" * 64,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A place in a folder that is not there yet."""
    return tmp_path / "new" / "manifest.json"


def test_a_result_is_written_and_read_again(path: Path) -> None:
    write_json(path, MANIFEST, "manifest")
    assert read_json(path, "manifest") == {"schema": 1, "kind": "manifest", **MANIFEST}
    assert os.listdir(path.parent) == [path.name]
    assert path.stat().st_mode & 0o777 == 0o644


def test_equal_results_are_equal_files(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    write_json(path, MANIFEST, "manifest")
    write_json(other, dict(reversed(MANIFEST.items())), "manifest")
    assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("failure", [KeyError("bug"), KeyboardInterrupt(), SystemExit(143)])
def test_a_writer_that_fails_leaves_things_as_they_were(
    path: Path, there: bool, failure: BaseException
) -> None:
    if there:
        path.parent.mkdir()
        path.write_text("whole")
    with pytest.raises(type(failure)), atomic(path) as temporary:
        temporary.write_text("half")
        raise failure
    assert os.listdir(path.parent) == ([path.name] if there else [])
    assert not there or path.read_text() == "whole"


def test_a_disk_that_refuses_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, text: str) -> None:
        with self.open("w") as file:
            file.write(text[:7])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(WorkError) as raised:
        write_json(path, MANIFEST, "manifest")
    assert str(raised.value) == f"cannot write {path}: No space left on device"
    assert os.listdir(path.parent) == []


def test_a_file_larger_than_the_system_allows(path: Path) -> None:
    """The real refusal of a write, by a limit on the size of files."""
    program = f"""
import resource, signal
from pathlib import Path
from lorasp.errors import WorkError
from lorasp.results import atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with atomic(Path({str(path)!r})) as temporary:
        temporary.write_text("x" * 10_000)
except WorkError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == f"cannot write {path}: File too large\n", done.stderr
    assert os.listdir(path.parent) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        WorkError, match=r"cannot write .*file/result\.json: (Not a dir|File exists)"
    ):
        write_json(tmp_path / "file" / "result.json", MANIFEST, "manifest")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"revision": 3}, "revision: 3 is not of type 'string'"),
        ({"more": 1}, r"top level: .*'more' was unexpected.*; allowed are .*fingerprint, inputs"),
        ({"files": {"a": {"bytes": 1}}}, r"files\.a: 'sha256' is a required property"),
    ],
)
def test_an_invalid_result_is_refused(path: Path, change: dict, message: str) -> None:
    with pytest.raises(WorkError, match=f"refusing to write .*: not a valid manifest .*{message}"):
        write_json(path, MANIFEST | change, "manifest")
    assert not path.exists()
    path.parent.mkdir()
    path.write_text(json.dumps({"schema": 1, "kind": "manifest", **MANIFEST, **change}))
    with pytest.raises(
        WorkError, match=f"is not a valid manifest file .*{message}.*; run its stage"
    ):
        read_json(path, "manifest")


def test_files_that_are_no_result(path: Path) -> None:
    with pytest.raises(WorkError, match=r"cannot read .*manifest\.json: No such file"):
        read_json(path, "manifest")
    write_json(path, MANIFEST, "manifest")
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(WorkError, match=r"manifest\.json is not JSON \(.*\); delete it and run"):
        read_json(path, "manifest")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(WorkError, match=r"manifest\.json is not JSON"):
        read_json(path, "manifest")
    path.write_text(whole)
    with pytest.raises(WorkError, match=r"is not a valid train file \(.*\); run its stage again"):
        read_json(path, "train")


def test_every_schema_is_a_schema() -> None:
    from jsonschema import Draft202012Validator

    kinds = sorted(file.name.split(".")[0] for file in results.SCHEMAS.glob("*.schema.json"))
    assert {"config", "manifest", "metrics", "profile", "task", "train"} <= set(kinds)
    for kind in kinds:
        Draft202012Validator.check_schema(results.schema(kind))


def test_fingerprints() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1, "b": [2]}) != fingerprint({"a": 1, "b": [3]})
    # printf '[]' | sha256sum
    expected = "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"
    assert fingerprint([]) == expected


def test_sha256_of_a_file_of_more_than_one_block(tmp_path: Path) -> None:
    file = tmp_path / "million"
    file.write_bytes(b"a" * 1_000_000 + b"a" * 1_000_000)
    done = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True)
    assert sha256_of(file) == done.stdout.split()[0]


def test_provenance_names_code_packages_and_machine() -> None:
    from importlib.metadata import version

    provenance.cache_clear()
    found = provenance()
    root = Path(results.__file__).parents[1]
    done = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True)
    assert found["git"]["commit"] == (done.stdout.strip() or None)
    assert found["versions"]["torch"] == version("torch")
    assert found["machine"]["cores"] == os.cpu_count() and found["machine"]["gpus"] is not None
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("why", ["no git", "no repository"])
def test_provenance_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, why: str) -> None:
    if why == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setattr(results, "__file__", str(tmp_path / "results.py"))
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    provenance.cache_clear()
    try:
        assert provenance()["git"] == {"commit": None, "dirty": None}
    finally:
        provenance.cache_clear()
