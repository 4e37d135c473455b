"""Configurations that reach for what is not theirs are refused before anything is done."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorasp.config import cells, load_config
from lorasp.data.local import tables
from lorasp.errors import UsageError
from lorasp.results import first_error

ROOT = Path(__file__).parents[1]
REVISION = "0" * 40
# Names become folders and parts of shell lines; none of these may.
NAMES = (
    "..", ".", "../up", "a/b", "/abs", ".hidden", "-rf", "a b", "a\n", "\na", "a;b", "$(id)",
    "`id`", "a\\b", "a\x00b", "a|b", "a{b}", "*", "", "x" * 81, "ünï", "a\u202eb", "‥", "a\u2215b",
)  # fmt: skip
PATHS = (
    "..", "../up", "a/../../up", "/etc", "//etc", "~/x", "-x", "a\n", "a/..", "a\\..\\..\\b",
    "a\x00", "{scale}", "", "x" * 401, "a\n/../..",
)  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the shipped configurations, and one beside it."""
    (tmp_path / "outside").mkdir()
    shutil.copytree(ROOT / "config", tmp_path / "project" / "config")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def refused(**keys: Any) -> str:
    """What load_config says of the smoke scale with these keys; it must refuse them."""
    path = Path("config", "own.yaml")
    path.write_text(yaml.safe_dump({"extends": "smoke.yaml", **keys}))
    with pytest.raises(UsageError) as error:
        load_config(path)
    sentence = str(error.value)
    assert sentence.startswith("config/own.yaml: ") and "\n" not in sentence
    return sentence


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["scale", "models", "datasets", "tasks", "methods", "recipes"])
def test_what_is_no_name_is_refused(kind: str, name: str) -> None:
    sentence = refused(**{kind: name if kind == "scale" else {name: {}}})
    assert "at most 80 letters, digits, dots" in sentence


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("scale", "artefacts"),
        ("scale", "bench"),
        ("scale", "rehearsal"),
        ("scale", "audit.json"),
        ("models", "profile"),
        ("models", "logs"),
        ("datasets", "models"),
        ("datasets", "tokens"),
        ("tasks", "train"),
    ],
)
def test_names_of_the_suites_own_folders_and_rules(kind: str, name: str) -> None:
    config = yaml.safe_load(Path("config/smoke.yaml").read_text())
    entry = next(iter(config[kind].values())) if kind != "scale" else None
    sentence = refused(**{kind: name if kind == "scale" else {name: entry}})
    assert kind in sentence and name in sentence


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("key", ["data_dir", "claims", "definition", "local", "member", "gguf"])
def test_a_path_that_leads_out_is_refused(key: str, path: str) -> None:
    artefact = {"package": "p", "version": "1", "file": "p.whl", "sha256": "0" * 64}
    packed = {"kind": "pypi", "artefacts": [artefact]}
    encoder = {"architecture": "encoder", "targets": ["query"]}
    keys: dict[str, Any] = {
        "data_dir": {"data_dir": path},
        "claims": {"claims": [path]},
        "definition": {"tasks": {"mrpc": {"definition": path}}},
        "local": {"datasets": {"mine": {"source": {"kind": "local", "path": path}}}},
        "member": {"models": {"mine": encoder | {"source": packed | {"member": path}}}},
        "gguf": {"models": {"mine": encoder | {"source": packed | {"gguf": path}}}},
    }[key]
    sentence = refused(**keys)
    assert "a path inside this folder, without .." in sentence
    assert "ln -s /its/place my-link" in sentence


@pytest.mark.parametrize("label", ["a\n", "a\nb", "a\u2028b", "\x1b[31m", "", "x" * 81])
def test_a_label_is_one_line(label: str) -> None:
    """U+2028 would even end a string in the expressions of a chart."""
    assert "one line of at most 80" in refused(methods={"lora": {"label": label}})


def test_a_link_leads_out_deliberately(place: Path) -> None:
    """Who can make a link can read what it names; a configuration from elsewhere makes none."""
    (place.parent / "outside" / "train.csv").write_text("a,b\n1,2\n")
    Path("big").symlink_to(place.parent / "outside")
    source = {"kind": "local", "path": "big"}
    path = Path("config", "own.yaml")
    path.write_text(
        yaml.safe_dump({"extends": "smoke.yaml", "datasets": {"mine": {"source": source}}})
    )
    named = load_config(path)["datasets"]["mine"]["source"]["path"]
    assert tables(named)["train"].to_list() == [{"a": 1, "b": 2}]


@pytest.mark.parametrize("parent", ["../smoke.yaml", "sub/smoke.yaml", "/etc/passwd", ["a"], 3])
def test_only_a_file_beside_it_is_extended(parent: Any) -> None:
    path = Path("config", "own.yaml")
    path.write_text(yaml.safe_dump({"extends": parent}))
    with pytest.raises(UsageError, match=r"extends is .*; allowed is the name of a file beside it"):
        load_config(path)


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ({"id": "../../etc"}, "id"),
        ({"id": "./local"}, "id"),
        ({"id": "/etc"}, "id"),
        ({"id": "a/b/c"}, "id"),
        ({"id": "a/.."}, "id"),
        ({"id": "a/b", "config": "../x"}, "config"),
        ({"id": "a/b", "revision": f"{REVISION}\n"}, "revision"),
        ({"id": "a/b", "revision": "refs/pr/1"}, "revision"),
        ({"id": "a/b", "trust_remote_code": True}, "trust_remote_code"),
    ],
)
def test_a_repository_of_the_hub_is_no_path(source: dict[str, Any], key: str) -> None:
    source = {"kind": "hub", "revision": REVISION} | source
    assert key in refused(datasets={"mine": {"source": source}})


@pytest.mark.parametrize(
    ("artefact", "key"),
    [
        ({"package": "p --index-url=http://x"}, "package"),
        ({"package": "p @ file:///etc/passwd"}, "package"),
        ({"package": "-r/etc/passwd"}, "package"),
        ({"version": "1\n--index-url http://x"}, "version"),
        ({"version": "1 --hash=sha256:0"}, "version"),
        ({"version": "*"}, "version"),
        ({"file": "../p.whl"}, "file"),
        ({"file": "/p.whl"}, "file"),
        ({"sha256": "0" * 64 + "\n"}, "sha256"),
    ],
)
def test_an_artefact_adds_nothing_to_what_pip_is_told(artefact: dict[str, str], key: str) -> None:
    pinned = {"package": "p", "version": "1", "file": "p.whl", "sha256": "0" * 64} | artefact
    source = {"kind": "pypi", "reader": "gettext-ro", "artefacts": [pinned]}
    sentence = refused(datasets={"mine": {"source": source}})
    assert f"datasets.mine.source.artefacts.0.{key}" in sentence


@pytest.mark.parametrize("split", ["../up", "/abs", "a/b", ".hidden", "a\n"])
@pytest.mark.parametrize("key", ["train", "validation", "evaluate"])
def test_the_split_of_a_task_is_a_name(key: str, split: str) -> None:
    task = yaml.safe_load((ROOT / "lorasp" / "tasks" / "sst2.yaml").read_text())
    assert first_error(task, "task") is None
    sentence = first_error(task | {key: [split] if key == "evaluate" else split}, "task")
    assert sentence is not None and "the name of a split" in sentence


def test_yaml_that_would_run_code(place: Path) -> None:
    mark = place.parent / "outside" / "ran"
    for tag in ("!!python/object/apply:os.system", "!!python/object/new:os.system", "!function"):
        Path("config/own.yaml").write_text(f"scale: {tag} ['touch {mark}']\n")
        with pytest.raises(UsageError, match="is not YAML"):
            load_config(Path("config/own.yaml"))
    assert not mark.exists()


@pytest.mark.parametrize("scale", ["smoke", "mini", "paper", "simulated"])
def test_every_shipped_run_has_a_folder_of_its_own_below_results(scale: str) -> None:
    config = load_config(Path("config", f"{scale}.yaml"))
    for cell in cells(config):
        parts = cell.folder.parts
        assert parts[:2] == ("results", scale) and len(parts) == 7
        assert not any(part.startswith((".", "-")) or part != part.strip() for part in parts)


@pytest.mark.parametrize("folder", ["results", "./config", ".", "./", "lorasp/own", "reports/x"])
def test_data_do_not_lie_among_the_suites_own_files(folder: str) -> None:
    assert "which is taken: folders of the suite's own" in refused(data_dir=folder)


def test_data_may_lie_beside_them() -> None:
    path = Path("config", "own.yaml")
    path.write_text(yaml.safe_dump({"extends": "smoke.yaml", "data_dir": "./results-data/x"}))
    assert load_config(path)["data_dir"] == "./results-data/x"
