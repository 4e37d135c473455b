"""The stand-in is a hub to its real clients, and what `prepare` fetches is what they get."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from standins import ROOT, Repositories, turned_to

from lorasp import cli
from lorasp.config import Config, cells, data_folder, load_config
from lorasp.data.folders import is_current
from lorasp.data.load import check_folder, load_split
from lorasp.data.mmlu import SUBJECTS
from lorasp.data.prepare import prepare_dataset, prepare_model
from lorasp.doctor import examine
from lorasp.errors import WorkError
from lorasp.models import load_tokenizer
from lorasp.rehearsal.hub import STRANGER, TOKEN, Hub
from lorasp.rehearsal.repositories import TRAP
from lorasp.rehearsal.run import environment, weather

GATED = "llama-2-7b"
PICKLES = (".bin", ".h5", ".msgpack", ".ot", ".py")


def prepare_all(config: Config) -> None:
    for name in config["datasets"]:
        prepare_dataset(config, name)
    for name in config["models"]:
        prepare_model(config, name)


@pytest.fixture(scope="module")
def fetched(
    published: Repositories, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """A folder with all data of the paper's configuration, and what was asked of the stand-in."""
    folder = tmp_path_factory.mktemp("fetched")
    config = load_config(ROOT / "config" / "rehearse.yaml")
    with turned_to(published) as hub, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        prepare_all(config)
    return folder / "data", hub.log


@pytest.fixture
def prepared(
    fetched: tuple[Path, list[dict[str, Any]]], rehearse: Config, monkeypatch: pytest.MonkeyPatch
) -> Config:
    """The configuration, with a copy of those data where the test runs."""
    shutil.copytree(fetched[0], "data")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return rehearse


def test_every_source_of_the_paper_is_fetched_at_its_commit(
    fetched: tuple[Path, list[dict[str, Any]]], prepared: Config
) -> None:
    entries = {("models", name): entry for name, entry in prepared["models"].items()}
    entries |= {(name,): entry for name, entry in prepared["datasets"].items()}
    assert len(entries) == 7 + 11
    for parts, entry in entries.items():
        folder = data_folder(prepared, *parts)
        manifest = check_folder(folder)
        assert manifest["revision"] == entry["source"]["revision"]
        assert is_current(folder, entry["source"], manifest["inputs"])
    log = fetched[1]
    assert not [request for request in log if request["path"].endswith(PICKLES)]
    assert not [request for request in log if "auxiliary_train" in request["path"]]
    assert not [request for request in log if "/cs-en/" in request["path"]]
    assert {request["status"] for request in log} == {200, 302}


def test_what_it_fetches_is_what_was_published(published: Repositories, prepared: Config) -> None:
    """LLaMA in shards, GLUE with all its splits, WMT's one column as two, MMLU by subject."""
    llama = check_folder(data_folder(prepared, "models", "llama-7b"))["files"]
    assert {"model.safetensors.index.json", "model-00003-of-00003.safetensors"} <= set(llama)
    source = prepared["models"]["llama-7b"]["source"]["id"]
    files = published["models", source].files
    for name in llama:
        assert data_folder(prepared, "models", "llama-7b", name).read_bytes() == files[name]
    mnli = data_folder(prepared, "mnli")
    assert set(load_split(mnli, "test_matched")["label"]) == {-1}
    assert len(load_split(mnli, "train")) == 32
    assert set(load_split(data_folder(prepared, "wmt16"), "test").column_names) == {"en", "ro"}
    assert "text" in load_split(data_folder(prepared, "alpaca"), "train").column_names
    mmlu = check_folder(data_folder(prepared, "mmlu"))["files"]
    assert len(mmlu) == 3 * len(SUBJECTS) + 1


def test_every_real_client_gets_the_same(hub: Hub, prepared: Config, tmp_path: Path) -> None:
    """huggingface_hub, datasets, transformers and lm-eval, by id and commit."""
    models = {name: entry["source"] for name, entry in prepared["models"].items()}
    tables = {name: entry["source"] for name, entry in prepared["datasets"].items()}
    del tables["mmlu"]  # lm-eval asks for that
    script = Path(__file__).with_name("clients.py")
    asked = {"models": list(models.values()), "datasets": list(tables.values())}
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(asked)],
        env=environment(hub, str(tmp_path / "home")) | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name, source in models.items():
        folder = data_folder(prepared, "models", name)
        total, ids = found["models"][source["id"]]
        assert total == pytest.approx(_sum(folder), abs=1e-6)
        assert ids == load_tokenizer(folder)("the kind cat")["input_ids"]
    for name, source in tables.items():
        got = found["datasets"][f"{source['id']}/{source.get('config', '')}"]
        for split, rows in got.items():
            ours = load_split(data_folder(prepared, name), split).to_list()
            assert ours == [row.get("translation", row) for row in rows]
    assert found["sha"] == tables["mnli"]["revision"]
    assert Path(found["snapshot"], "mrpc/train-00000-of-00001.parquet").is_file()
    (question,) = found["mmlu"]
    assert "Which word is kind to the" in question
    taken = [request["path"] for request in hub.log if request["method"] == "GET"]
    assert not [path for path in taken if path.endswith(PICKLES)]


def _sum(folder: Path) -> float:
    from safetensors.torch import load_file

    weights = [load_file(file) for file in folder.glob("*.safetensors")]
    return sum(float(tensor.double().sum()) for part in weights for tensor in part.values())


def test_pickled_weights_are_traps() -> None:
    with pytest.raises(SystemExit, match="was loaded"):
        pickle.loads(TRAP)


def test_llama_2_needs_a_token_and_a_licence(
    hub: Hub, rehearse: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WorkError, match=r"Llama-2-7b-hf .* is gated, and no token came with"):
        prepare_model(rehearse, GATED)
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    with pytest.raises(WorkError, match=r"the account of the token has not been let in"):
        prepare_model(rehearse, GATED)
    assert not data_folder(rehearse, "models", GATED).exists()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert prepare_model(rehearse, GATED).is_file()


def test_no_token_is_written_anywhere(prepared: Config) -> None:
    for file in Path("data").rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes()


def test_a_rough_day_changes_nothing(hub: Hub, prepared: Config, waits: list[float]) -> None:
    """The failures of a rehearsal are got over, and what was fetched is the same to the byte."""
    names = ("mnli", "models/t5-base", "models/llama-7b", "models/llama-13b")
    before = {name: check_folder(data_folder(prepared, name))["files"] for name in names}
    Path("data").rename("before")
    hub.faults += weather()
    prepare_dataset(prepared, "mnli")
    for name in names[1:]:
        prepare_model(prepared, Path(name).name)
    assert [fault.times for fault in hub.faults] == [0] * len(weather())
    assert len(waits) == 4  # 503, 429 and two cuts; the changed file is fetched again at once
    after = {name: check_folder(data_folder(prepared, name))["files"] for name in names}
    assert after == before


def test_what_was_downloaded_can_be_carried_over(
    hub: Hub, prepared: Config, waits: list[float]
) -> None:
    """To a machine without a hub: the downloads alone, or what was prepared of them."""
    assert not [finding for finding in examine(prepared) if "hub" in finding["what"]]
    prepare_all(prepared)
    assert hub.log == []
    Path("data/rehearsal/rehearse").rename("left behind")
    assert [finding for finding in examine(prepared) if "hub" in finding["what"]]
    hub.log.clear()
    prepare_all(prepared)
    assert hub.log == [] and waits == []


def test_damage_on_the_way_is_noticed(hub: Hub, prepared: Config) -> None:
    Path("data/rehearsal/rehearse").rename("left behind")
    (file,) = Path("data/rehearsal/artefacts").glob("model--google-t5--t5-base@*/model.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    prepare_model(prepared, "t5-base")
    assert [request["path"].split("/")[-1] for request in hub.log] == ["model.safetensors"] * 2


def test_the_stand_ins_files_become_no_result(
    hub: Hub, rehearse: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those that it serves now nor those that another configuration left here."""
    paper = load_config(ROOT / "config" / "paper.yaml")
    refused = pytest.raises(WorkError, match=r"a stand-in's invention .* `rm -rf data/artefacts/")
    with refused:
        prepare_model(paper, "t5-base")
    with refused:
        prepare_dataset(paper, "sst2")
    assert not hub.asked("/resolve/")
    prepare_model(rehearse | {"data_dir": "data"}, "t5-base")
    assert list(Path("data/artefacts").rglob("*.safetensors"))
    hub.repositories.clear()
    with refused:
        prepare_model(paper, "t5-base")
    assert not Path("data/paper/models/t5-base").exists()


def test_nothing_of_the_users_own_hub_goes_along(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE")
    own += ("HUGGINGFACE_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_CACHE")
    for name in (*own, "HF_HOME", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.setenv(name, "/own")
    given = environment(hub, str(tmp_path))
    assert "/own" not in given.values() and not set(own) & given.keys()
    line = "from huggingface_hub import constants as c; import datasets.config as d; "
    line += "print(c.HF_HUB_CACHE, c.HF_TOKEN_PATH, d.HF_DATASETS_CACHE, sep='\\n')"
    told = subprocess.check_output([sys.executable, "-c", line], env=given, text=True)
    assert all(Path(path).is_relative_to(tmp_path) for path in told.split())


def test_a_command_told_to_end_ends_by_itself(tmp_path: Path) -> None:
    """SIGTERM goes on to it, and it may take its time: it is not killed."""
    child = "import signal, sys, time\n"
    child += (
        "def end(*_):\n    time.sleep(0.5)\n    print('saved', flush=True)\n    sys.exit(143)\n"
    )
    child += "signal.signal(signal.SIGTERM, end)\nprint('ready', flush=True)\ntime.sleep(60)\n"
    line = [sys.executable, "-m", "lorasp", "rehearse", "--", sys.executable, "-c", child]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate()[0] == "saved\n"
    assert process.returncode == 143


def test_the_command_finds_its_hub(
    rehearse: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config").symlink_to(ROOT / "config")
    line = "import os; print(os.environ['HF_ENDPOINT'], os.environ.get('HF_HUB_OFFLINE'))"
    code = cli.main(["rehearse", "--", sys.executable, "-c", f"{line}; raise SystemExit(7)"])
    told = capfd.readouterr()
    assert code == 7
    address, offline = told.out.split()
    assert address.startswith("http://127.0.0.1:") and offline == "None"
    assert "the stand-in has answered 0 requests, 0 of them for pickled weights" in told.err
    assert cli.main(["rehearse", "--", "no-such-command"]) == 2
    assert cli.main(["rehearse"]) == 2
    assert "rehearse needs a command" in capfd.readouterr().err


def difference(one: Any, other: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """What `other` has where the two differ, by dotted key."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return {} if one == other else {".".join(path): other}
    found: dict[str, Any] = {}
    for key in one.keys() | other.keys():
        found |= difference(one.get(key), other.get(key), (*path, str(key)))
    return found


def test_the_rehearsal_differs_from_the_paper_in_what_it_says_and_no_more() -> None:
    paper, rehearsal = (load_config(ROOT / "config" / f"{n}.yaml") for n in ("paper", "rehearse"))
    found = difference(paper, rehearsal)
    assert found.pop("no_result").startswith("Rehearsal. Random models")
    swept = [name for name in rehearsal["recipes"] if name.startswith("tuned.")]
    assert len(swept) == 4
    assert found == {
        **{f"recipes.{name}.max_steps": 2 for name in swept},
        "scale": "rehearse",
        "data_dir": "data/rehearsal",  # apart from the real files of the same names
        "runtime.device": "cpu",
        "runtime.threads": 1,
        "requires.cuda": False,
        "requires.disk_gib": 1,
        "recipes.stated.max_steps": 2,
        "recipes.tuned.max_steps": 2,
        "profile.warmup": 1,
        "profile.repeats": 2,
    }
    assert [str(cell) for cell in cells(rehearsal)] == [str(cell) for cell in cells(paper)]
