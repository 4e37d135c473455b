"""What a scale needs and this machine lacks is named, and so is what runs here."""

import copy
import json
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from lorasp import cli, doctor, machine, survey
from lorasp.config import cells, load_config
from lorasp.doctor import examine
from lorasp.errors import WorkError

ROOT = Path(__file__).parents[1]
GIB = 2**30
CARD = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 * GIB, "driver": "570.1"}


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The paper's configuration on a machine that has it all: a device, 700 GiB, the hub."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "gpus", lambda: [CARD, CARD])
    monkeypatch.setattr(doctor, "cuda_build", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1500 * GIB, 200 * GIB, 1300 * GIB))
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
        "1200 GiB of free disk under results": "1300 GiB, with what lies there already",
        "a CUDA device": "GPU 0, GPU 1",
        f"the Hugging Face hub at {constants.ENDPOINT}": "it answers",
    }
    assert missing(paper) == []


@pytest.mark.parametrize(
    ("cards", "build", "count", "found", "mend"),
    [
        ([], True, 0, "no NVIDIA driver answers", "lorasp plan --scale paper --gpu"),
        ([], False, 0, "no NVIDIA driver answers", "lorasp plan --scale paper --gpu"),
        ([CARD], False, 0, "was built without CUDA", "make .venv"),
        ([CARD], True, 0, "can use none of NVIDIA H100 80GB HBM3", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_no_device(
    paper: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    cards: list[Any],
    build: bool,
    count: int,
    found: str,
    mend: str,
) -> None:
    monkeypatch.setattr(doctor, "gpus", lambda: cards)
    monkeypatch.setattr(doctor, "cuda_build", lambda: build)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    (finding,) = (finding for finding in examine(paper) if not finding["met"])
    assert finding["what"] == "a CUDA device"
    assert found in finding["found"] and mend in finding["mend"]


def test_a_disk_that_is_too_small(paper: dict[str, Any]) -> None:
    paper["requires"]["disk_gib"] = 1301
    paper["data_dir"] = "data/not/yet/there"
    assert missing(paper) == [
        "1301 GiB of free disk under results: 1300 GiB, with what lies there already"
    ]


def test_the_disk_is_asked_for_where_the_rest_of_the_scale_is_trained(
    paper: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for a data set or a filter; and what a stopped run left is its own share already."""
    monkeypatch.chdir(tmp_path)
    paper["requires"]["disk_gib"] = 1301
    runs = cells(paper)
    jobs = [{"stage": "train", **vars(run)} for run in runs]
    disk = "GiB of free disk"
    assert any(disk in line for line in (f["what"] for f in examine(paper, jobs)))
    assert not any(disk in finding["what"] for finding in examine(paper, jobs[:-1]))
    assert not any(disk in finding["what"] for finding in examine(paper, [{"stage": "evaluate"}]))
    (runs[-1].folder / "adapter").mkdir(parents=True)
    (runs[-1].folder / "train.json").touch()
    weights = runs[-1].folder / "adapter" / "model.safetensors"
    with weights.open("wb") as file:
        file.truncate(GIB)  # a hole, which takes no room
    (tmp_path / "data").mkdir()
    os.link(weights, tmp_path / "data" / "again")  # as a download and the model made of it
    (finding,) = (f for f in examine(paper, jobs[:-1]) if disk in f["what"])
    assert finding["met"] and finding["found"].startswith("1301 GiB")


def test_the_disk_is_that_of_the_results(
    paper: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that of the data, where they lie elsewhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "file").write_bytes(b"x" * 2**20)
    (tmp_path / "data").symlink_to("large")
    (tmp_path / "results").mkdir()
    usage = namedtuple("usage", "total used free")
    asked = []
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: (asked.append(folder), usage(0, 0, 0))[1]
    )
    monkeypatch.setattr(doctor, "_disk_of", lambda folder: "data" in folder.parts)
    (finding,) = (f for f in examine(paper) if "disk" in f["what"])
    assert asked == [Path("results")] and finding["found"].startswith("0 GiB")


def test_a_driver_that_does_not_answer(
    paper: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[Any]:
        raise WorkError("the NVIDIA driver does not answer: version mismatch")

    monkeypatch.setattr(doctor, "gpus", broken)
    (finding,) = (finding for finding in examine(paper) if not finding["met"])
    assert "version mismatch" in finding["found"] and "restart" in finding["mend"]
    monkeypatch.setattr(machine, "gpus", broken)
    here = machine.machine()
    assert here["gpus"] == [] and "version mismatch" in here["driver"]


def test_a_login_in_the_address_of_the_hub(
    paper: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def opened(request: Any, timeout: float) -> Any:
        seen.append((request.full_url, request.get_header("Authorization")))
        raise doctor.urllib.error.HTTPError(request.full_url, 401, "", None, None)  # type: ignore[arg-type]

    monkeypatch.setattr(doctor.urllib.request, "urlopen", opened)
    monkeypatch.setattr(constants, "ENDPOINT", "http://me:secret@hub.example")
    assert missing(paper) == []
    assert seen == [
        ("http://hub.example/api/models/google-t5/t5-base", "Basic bWU6c2VjcmV0"),
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
    assert [finding["what"] for finding in examine(config)] == ["1 GiB of free disk under results"]


def prepare_all(config: dict[str, Any], but: str = "") -> None:
    """Manifests for every data set and model of the hub but one."""
    for kind, below in (("datasets", ""), ("models", "models")):
        for name, entry in config[kind].items():
            if entry["source"]["kind"] == "hub" and name != but:
                file = Path("data/paper", below, name, "manifest.json")
                file.parent.mkdir(parents=True)
                file.write_text("{}")


def test_the_hub_is_asked_for_where_something_is_still_to_be_fetched(
    paper: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    prepare_all(paper, but="llama-2-7b")  # which is offered, and part of no run
    assert missing(paper) == []
    shutil.rmtree("data/paper/mmlu")
    assert "hub" in missing(paper)[0]
    shutil.rmtree("data")
    prepare_all(paper, but="t5-large")
    assert "hub" in missing(paper)[0]


@pytest.mark.parametrize(
    ("jobs", "lacking"),
    [
        ([{"stage": "train", "model": "t5-base"}, {"stage": "report"}], ["CUDA"]),
        ([{"stage": "prepare_dataset", "dataset": "mrpc"}], ["hub"]),
        ([{"stage": "prepare_model", "model": "t5-base"}], ["hub"]),
        ([{"stage": "prepare_model", "model": "t5-base"}, {"stage": "profile"}], ["CUDA", "hub"]),
        ([{"stage": "prepare_tokens", "model": "t5-base", "task": "mrpc"}], []),
        ([{"stage": "report"}], []),
    ],
)
def test_jobs_ask_for_what_they_need_themselves(
    paper: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    jobs: list[dict[str, Any]],
    lacking: list[str],
) -> None:
    """A login node without a GPU prepares; a machine without a network trains."""
    monkeypatch.setattr(doctor, "gpus", lambda: [])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = [finding["what"] for finding in examine(paper, jobs) if not finding["met"]]
    assert [word for word in ("CUDA", "hub") if any(word in what for what in found)] == lacking


def test_the_command(
    paper: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["doctor", "--config", str(ROOT / "config" / "paper.yaml")]
    assert cli.main(command) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and shown.out.count("ok ") == 3
    monkeypatch.setattr(doctor, "gpus", lambda: [])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert cli.main([*command, "--json"]) == 1
    shown = capsys.readouterr()
    assert [finding["met"] for finding in json.loads(shown.out)] == [True, False, False]
    (line,) = shown.err.splitlines()
    assert line.startswith("error: the paper scale cannot run on this machine, and nothing was tr")
    assert "a CUDA device (no NVIDIA" in line and "HF_HUB_OFFLINE is set" in line
    assert "make smoke" in line and "make mini" in line and "free disk" not in line


@pytest.fixture
def checkout(
    paper: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> pytest.MonkeyPatch:
    """A checkout on a machine that has everything but a conda, a token and a plan."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.setattr(machine, "gpus", lambda: [CARD, CARD])
    monkeypatch.setattr(machine, "has_token", lambda: False)
    monkeypatch.setattr(machine, "other_packages", lambda: [])
    monkeypatch.setattr(
        machine.shutil, "which", lambda name: name if name in ("sbatch", "podman") else None
    )
    monkeypatch.setattr(survey, "index_answer", lambda _: None)
    return monkeypatch


def page(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["doctor", *arguments]) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and all(len(line) <= 100 for line in shown.out.splitlines())
    return " ".join(shown.out.split())


def test_one_page_of_the_machine_and_every_scale(
    checkout: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = page(capsys)
    card = "NVIDIA H100 80GB HBM3, 80 GiB, driver 570.1"
    for words in (
        f"GPUs {card}; {card}", "scheduler sbatch", "containers podman", "conda none",
        "hub token none", "requirements.lock pins: as pinned",
        "smoke runs: make smoke", "mini runs: make mini", "rehearse runs: make rehearse",
        "paper runs: make reproduce",
        "lorasp plan --scale paper --gpu h100-80gb --out results/paper/plan.json",
    ):  # fmt: skip
        assert words in shown
    assert "missing" not in shown and "mend" not in shown


def test_what_is_missing_stands_beside_what_mends_it(
    checkout: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")
    checkout.setattr(machine, "gpus", lambda: [])
    checkout.setattr(doctor, "gpus", lambda: [])
    checkout.setattr(machine, "other_packages", lambda: ["peft missing (0.21.2)"])
    checkout.setattr(survey, "index_answer", lambda _: "Could not find a version")
    checkout.setattr(constants, "HF_HUB_OFFLINE", True)
    checkout.setattr(shutil, "disk_usage", lambda _: usage(GIB, GIB // 2, GIB // 2))
    shown = page(capsys)
    for what, mend in {
        "requirements.lock pins: peft missing (0.21.2)": "make .venv",
        "1 GiB of free disk under results: 0 GiB": "ln -s /a/bigger/disk results",
        "a CUDA device: no NVIDIA driver": "lorasp plan --scale paper --gpu h100-80gb",
        "the package index, for 9 packages: Could not find": "pip config list",
        "HF_HUB_OFFLINE is set": "unset HF_HUB_OFFLINE, or prepare on a machine that reaches",
    }.items():
        _, after = shown.split(what, 1)
        assert mend in after.split("missing")[0]
    assert shown.count("lacks something: ") == 4
    # the rehearsal brings its hub along
    assert shown.count("HF_HUB_OFFLINE is set") == 1


def test_a_token_is_there_and_not_shown(
    checkout: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout.setattr(machine, "has_token", lambda: True)
    checkout.setenv("HF_TOKEN", "hf_planted0123456789abcdef")
    checkout.setattr(constants, "ENDPOINT", "https://me:planted-password@hub.example")
    for arguments in ((), ("--json",), ("--config", "config/paper.yaml")):
        assert cli.main(["doctor", *arguments]) == 0
        shown = capsys.readouterr()
        assert "planted" not in shown.out + shown.err
    assert "there is one" in page(capsys)


def plan(*jobs: tuple[str, str, int, bool]) -> None:
    made = [
        {"stage": "train", "model": model, "method": method, "gpus": gpus, "fits": fits}
        for model, method, gpus, fits in jobs
    ]
    file = Path("results/paper/plan.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    device = {"gpu": {"name": "h100-80gb"}, "totals": {"gpu_hours": 812.4}}
    file.write_text(json.dumps({"jobs": made, **device}))


def test_the_plan_says_what_fits(
    checkout: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout.setattr("lorasp.results.first_error", lambda *_: None)
    plan(
        ("t5-base", "ft", 1, True),
        ("llama-13b", "ft", 4, True),
        ("llama-13b", "lora-sp", 1, True),
        ("llama-13b", "lora", 1, True),
        ("llama-13b", "lora-sp", 1, True),
        ("llama-65b", "ft", 8, False),
    )
    shown = page(capsys)
    assert "fits t5-base: ft on 1 h100-80gb" in shown
    assert "llama-13b: lora, lora-sp on 1, ft on 4 (2 here)" in shown
    assert "llama-65b: ft do not fit" in shown
    assert "about 812 GPU hours" in shown
    # a plan for another device says nothing of this one
    asked = page(capsys, "--gpu", "a100-40gb")
    assert "llama-13b" not in asked and "--gpu a100-40gb --out results/paper/plan.json" in asked


def test_the_page_as_data(checkout: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"machine", "findings", "scales"}
    assert [scale["scale"] for scale in found["scales"]] == ["smoke", "mini", "rehearse", "paper"]
    findings = found["findings"] + [f for scale in found["scales"] for f in scale["findings"]]
    assert all(set(finding) == {"what", "found", "met", "mend"} for finding in findings)


def test_wrong_arguments(
    checkout: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["doctor", "--gpu", "abacus"]) == 2
    assert "gpu 'abacus' is unknown; known are h100-80gb" in capsys.readouterr().err
    assert cli.main(["doctor", "--gpu", "a100-40gb", "--config", "x"]) == 2
    shutil.rmtree(tmp_path / "config")
    assert cli.main(["doctor"]) == 2
    assert "start lorasp doctor in a checkout" in capsys.readouterr().err


def test_packages_beside_their_pins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("# a comment\npytest==0.1\nno-such-package==2.0\n")
    monkeypatch.setattr(machine, "LOCK", lock)
    assert machine.other_packages() == [
        f"pytest {pytest.__version__} (0.1)",
        "no-such-package missing (2.0)",
    ]
    lock.write_text(f"pytest=={pytest.__version__}\ntorch=={torch.__version__.split('+')[0]}\n")
    assert machine.other_packages() == []


def test_nothing_heavy_is_imported() -> None:
    """A page in a second: neither torch nor transformers, whatever the machine has."""
    script = "import sys; from lorasp.survey import survey; print('torch' in sys.modules, end=' ')"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}; print('transformers' in sys.modules)"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["False", "False"], done.stderr
