"""What a scale needs and this machine lacks is named, and so is what runs here."""

import copy
import json
import shutil
import socket
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from lorasp import cli, doctor
from lorasp.config import load_config
from lorasp.doctor import examine

ROOT = Path(__file__).parents[1]
GIB = 2**30


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The paper's configuration on a machine that has it all: a device, 700 GiB, the hub."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1100 * GIB, 200 * GIB, 900 * GIB))
    monkeypatch.setattr(
        doctor.urllib.request, "urlopen", lambda *_, **__: (tmp_path / "x").open("w")
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return copy.deepcopy(load_config(ROOT / "config" / "paper.yaml"))


def missing(config: dict[str, Any]) -> list[str]:
    return [f"{f['what']}: {f['found']}" for f in examine(config) if not f["met"]]


def test_a_machine_that_has_it_all(paper: dict[str, Any]) -> None:
    found = {finding["what"]: finding["found"] for finding in examine(paper)}
    assert found == {
        "800 GiB of free disk under data": "900 GiB, with what lies there",
        "a CUDA device": "GPU 0, GPU 1",
        f"the Hugging Face hub at {constants.ENDPOINT}": "it answers",
    }
    assert missing(paper) == []


def test_no_device(paper: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert missing(paper) == [f"a CUDA device: torch {torch.__version__} finds none"]


def test_a_disk_that_is_too_small(paper: dict[str, Any]) -> None:
    paper["requires"]["disk_gib"] = 901
    paper["data_dir"] = "data/not/yet/there"
    assert missing(paper) == [
        "901 GiB of free disk under data/not/yet/there: 900 GiB, with what lies there"
    ]


def test_the_hub_switched_off(paper: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert missing(paper) == [
        f"the Hugging Face hub at {constants.ENDPOINT}: HF_HUB_OFFLINE is set"
    ]


def test_a_hub_that_refuses_the_connection(
    paper: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody answers at this port
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.undo()
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        finding = next(f for f in examine(paper) if "hub" in f["what"])
    assert finding["what"] == f"the Hugging Face hub at {address}" and not finding["met"]
    assert finding["found"].startswith("cannot be reached: ")
    assert "refused" in finding["found"]


def test_a_hub_that_answers_with_an_error_answers(
    paper: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(*_: Any, **__: Any) -> None:
        raise doctor.urllib.error.HTTPError(constants.ENDPOINT, 401, "Unauthorized", None, None)  # type: ignore[arg-type]

    monkeypatch.setattr(doctor.urllib.request, "urlopen", forbid)
    assert missing(paper) == []


def test_smoke_needs_neither(paper: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_: Any, **__: Any) -> None:
        raise AssertionError("the smoke scale needs no network")

    monkeypatch.setattr(doctor.urllib.request, "urlopen", reached)
    config = load_config(ROOT / "config" / "smoke.yaml")
    assert [finding["what"] for finding in examine(config)] == ["1 GiB of free disk under data"]


def test_the_command(
    paper: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["doctor", "--config", str(ROOT / "config" / "paper.yaml")]
    assert cli.main(command) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and shown.out.count("ok ") == 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert cli.main([*command, "--json"]) == 1
    shown = capsys.readouterr()
    assert [finding["met"] for finding in json.loads(shown.out)] == [True, False, False]
    (line,) = shown.err.splitlines()
    assert line.startswith("error: the paper scale cannot run on this machine, and nothing was tr")
    assert "a CUDA device (torch" in line and "HF_HUB_OFFLINE is set" in line
    assert "make smoke" in line and "make mini" in line and "free disk" not in line
