"""Tokens and passwords are in no message, log or result, whatever else fails."""

import base64
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorasp import cli
from lorasp.data import pypi
from lorasp.errors import WorkError
from lorasp.redaction import redacted

ROOT = Path(__file__).parents[1]
TOKEN = "hf_planted0123456789abcdefABCDEF"
PASSWORD = "planted-pass-word"
KEY = "planted-wandb-key-0123456789"
PLANTED = {
    "HF_TOKEN": TOKEN,
    "WANDB_API_KEY": KEY,
    "PIP_INDEX_URL": f"http://somebody:{PASSWORD}@127.0.0.1:9/simple",
    "PIP_RETRIES": "0",
}
SECRETS = (TOKEN, PASSWORD, KEY)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"https://somebody:{PASSWORD}@host/x", "https://****@host/x"),
        (f"https://{KEY}@host/x and http://a:b@c", "https://****@host/x and http://****@c"),
        (f"Authorization: Bearer {TOKEN}", "Authorization: Bearer <HF_TOKEN>"),
        ("Bearer hf_another0123456789abcdef", "Bearer hf_****"),
        (f"key={KEY};", "key=<WANDB_API_KEY>;"),
        ("see https://host.org/a@b and me@host", "see https://host.org/a@b and me@host"),
        ("http://127.0.0.1:80/model--a@1/x", "http://127.0.0.1:80/model--a@1/x"),
        ("in https://host.org?a=me@b", "in https://host.org?a=me@b"),
        ("'http://me:p@ss/w0rd@host/x' for me@host", "'http://****@host/x' for me@host"),
        ("http://me:p/ss@w0rd@host.org", "http://****@host.org"),
        ("http://me:12/34@host.org", "http://****@host.org"),
        ("http://my.self:p/ss@host.org/a", "http://****@host.org/a"),
        ("http://me:p'a\"s@host.org", "http://****@host.org"),
        ("no entry for Basic c29tZWJvZHk6cGxhbnRlZA==: 403", "no entry for Basic ****: 403"),
        ("Basic assumptions and a Basic rehearsal", "Basic assumptions and a Basic rehearsal"),
        ("short stays: on", "short stays: on"),
    ],
)
def test_what_is_hidden(monkeypatch: pytest.MonkeyPatch, text: str, shown: str) -> None:
    for name, value in (PLANTED | {"ANY_PASSWORD": "on"}).items():
        monkeypatch.setenv(name, value)
    assert redacted(text) == shown


def test_a_defect_is_told_without_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lorasp import commands

    def fail(_: object) -> None:
        raise ValueError(f"GET https://u:{PASSWORD}@host with {TOKEN} and {KEY}")

    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(commands.COMMANDS, "methods", fail)
    assert cli.main(["methods"]) == 1
    told = capsys.readouterr().err
    assert "GET https://****@host with <HF_TOKEN> and <WANDB_API_KEY>" in told
    assert not any(secret in told for secret in SECRETS)


class Index(http.server.BaseHTTPRequestHandler):
    """A package index that lists a file and refuses it to everybody, and says to whom."""

    def do_GET(self) -> None:
        if self.path.startswith("/simple/"):
            page = f'<a href="/demo-1.tar.gz#sha256={"0" * 64}">demo-1.tar.gz</a>'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)
            return
        # in both forms: as it was sent, and as an address
        sent = str(self.headers.get("Authorization"))
        login = base64.b64decode(sent.removeprefix("Basic ")).decode()
        self.send_response(403, f"no entry for {sent}, http://{login}@index.org")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def index() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_pip_fails_without_telling_the_password(
    index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"http://somebody:{PASSWORD}@127.0.0.1:{index}/simple"
    monkeypatch.setenv("PIP_INDEX_URL", address)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(pypi, "PAUSES", ())
    pin = {"package": "demo", "version": "1", "file": "demo-1.tar.gz", "sha256": "0" * 64}
    with pytest.raises(WorkError) as error:
        pypi.fetch(pin, tmp_path)
    sentence, encoded = str(error.value), base64.b64encode(f"somebody:{PASSWORD}".encode()).decode()
    assert "pip cannot download demo==1" in sentence
    assert PASSWORD in sentence and encoded in sentence  # pip itself does not hide them here
    assert PASSWORD not in redacted(sentence) and encoded not in redacted(sentence)
    assert "no entry for Basic ****, http://****@index.org" in redacted(sentence)


def test_pip_is_not_given_the_tokens_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of an sdist runs under pip."""
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    given = pypi._environment()
    assert given["PIP_INDEX_URL"] == PLANTED["PIP_INDEX_URL"]
    assert not any(secret in value for secret in (TOKEN, KEY) for value in given.values())
    assert given["PATH"] == os.environ["PATH"]


CONFIG = """
extends: smoke.yaml
scale: planted
datasets:
  absent:
    source:
      kind: pypi
      reader: gettext-ro
      options: {packages: [x]}
      artefacts: [{package: lorasp-no-such, version: "1", file: a-1-py3-none-any.whl, sha256: %s}]
  gone: {source: {kind: hub, id: nobody/nothing, revision: %s}}
"""


def test_no_stage_writes_them(tmp_path: Path) -> None:
    """One run from its data to its report, and two downloads that fail: nothing has a secret."""
    (tmp_path / "config").symlink_to(ROOT / "config")
    local = tmp_path / "own"
    local.mkdir()
    (local / "smoke.yaml").write_bytes((ROOT / "config" / "smoke.yaml").read_bytes())
    (local / "planted.yaml").write_text(CONFIG % ("a" * 64, "a" * 40))
    run = ["--model", "roberta-tiny", "--task", "mrpc", "--method", "lora-sp"]
    run += ["--recipe", "stated", "--seed", "0"]
    lines = [
        ["prepare", "--dataset", "mrpc"],
        ["prepare", "--model", "roberta-tiny"],
        ["prepare", "--model", "roberta-tiny", "--task", "mrpc"],
        ["train", *run],
        ["evaluate", *run],
        ["report"],
    ]
    # the hub's address has a login in it, and nobody answers there
    endpoint = {"HF_ENDPOINT": f"http://somebody:{PASSWORD}@127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    home = {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}

    def start(stage: str, *names: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "lorasp", stage, "--config", "own/planted.yaml", *names]
        environment = {**os.environ, **PLANTED, **endpoint, **home}
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    # what fails tries again for half a minute, beside the run
    failing = [start("prepare", "--dataset", name) for name in ("absent", "gone")]
    told = ""
    for line in lines:
        done = start(*line)
        told += done.communicate()[0]
        assert done.returncode == 0, told
    for failed in failing:
        told += failed.communicate()[0]
        assert failed.returncode == 1, told
    assert "pip cannot download lorasp-no-such==1" in told and "nobody/nothing" in told
    assert (tmp_path / "reports/planted/report.html").exists()
    written = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert len(written) > 30
    for secret in SECRETS:
        assert secret not in told
        assert [str(file) for file, text in written.items() if secret.encode() in text] == []
    assert not re.search(r"://[^/\s]+:[^/\s]+@", told)
