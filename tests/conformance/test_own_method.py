"""A method of one's own, as docs/own-method.md tells: a file in the config, a package, refusals."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lorasp import plugins
from lorasp.cli import main
from lorasp.config import (
    cells,
    decisive,
    decisive_step,
    load_config,
    parse_cell,
    resolve,
    resolve_method,
)
from lorasp.data.prepare import prepare_dataset, prepare_model, prepare_tokens
from lorasp.errors import UsageError
from lorasp.methods import table
from lorasp.new_method import write_project
from lorasp.profiling import simulations
from lorasp.results import read_json

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own-method.md").read_text()
SHAPE = {"batch": 2, "length": 8}
RUN = {"model": "roberta-tiny", "task": "mrpc", "method": "random-rows", "recipe": "tuned"}


def block(language: str) -> str:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[0]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The project of the page: its file, its configuration."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "random_rows.py").write_text(block("python"))
    (tmp_path / "config" / "own.yaml").write_text(block("yaml"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORASP_SERVER", raising=False)
    state = torch.get_rng_state()
    yield tmp_path
    torch.set_rng_state(state)


def entry(**keys: Any) -> dict[str, Any]:
    return resolve_method({"methods": table({"mine": keys})}, "mine")


def test_the_page_s_method_passes_the_checks(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["methods", "check", "random-rows", "--config", "config/own.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["outcome"] for one in found} == {"passed"} and len(found) == 3 * 19
    assert {one["method"] for one in found} == {"random-rows"}


def prepared() -> dict[str, Any]:
    """The configuration of the page, with what its one run needs."""
    config = load_config(Path("config/own.yaml"))
    prepare_dataset(config, "mrpc")
    prepare_model(config, "roberta-tiny")
    prepare_tokens(config, "roberta-tiny", "mrpc")
    return config


def test_the_page_s_method_trains_and_is_restored_from_the_config_alone(project: Path) -> None:
    config = prepared()
    line = [f"--{key}={value}" for key, value in {**RUN, "seed": 0}.items()]
    assert main(["train", "--config=config/own.yaml", *line]) == 0
    cell = parse_cell(config, {**RUN, "seed": 0})
    done = read_json(cell.folder / "train.json", "train")
    assert done["config"]["method"]["code_sha256"] == resolve(config, cell)["method"]["code_sha256"]
    fresh = [sys.executable, "-m", "lorasp", "evaluate", "--config=config/own.yaml", *line]
    subprocess.run(fresh, check=True, env=environment(ROOT))
    assert (cell.folder / "metrics.json").is_file()
    saved = json.loads((cell.folder / "adapter" / "adapter_config.json").read_text())
    assert saved["method"] == "random-rows" and "code" not in saved


def test_what_the_class_says_is_in_the_table_and_the_entry_wins(project: Path) -> None:
    said = load_config(Path("config/own.yaml"))["methods"]
    assert said["random-rows"]["source"].startswith("W + M R, of a frozen random R")
    assert said["random-rows"]["family"] == "DELTA" and said["random-rows"]["group"] == "own"
    assert said["random-rows"]["settings"] == {"rank": 4}
    assert said["random-rows-2"]["settings"] == {"rank": 2}
    assert entry(code="methods/random_rows.py:RandomRows")["settings"] == {"rank": 8}
    lines = ["class Mine:", "    seeded = False", "    applies_to = ('causal',)"]
    lines += ["    because = str()", "    def __init__(self, a, b, c, d=[1], *, e=2, f): ..."]
    Path("methods/said.py").write_text("\n".join(lines))
    found = plugins.described(Path("methods/said.py"), "Mine")
    assert found["seeded"] is False and found["applies_to"] == ["causal"]
    assert "because" not in found and found["settings"] == {"d": [1], "e": 2}


def test_a_changed_file_trains_again(project: Path) -> None:
    config = load_config(Path("config/own.yaml"))
    cell = parse_cell(config, {**RUN, "seed": 0})
    config["models"]["roberta-tiny"]["runtime"] = {"precision": "bf16"}

    def values() -> list[Any]:
        step = decisive_step(config, "roberta-tiny", "random-rows")
        assert step["runtime"]["precision"] == "bf16" and step["method"]["family"] == "DELTA"
        simulated = simulations._question(resolve(config, cell) | {"profile": SHAPE}, None)
        return [decisive("train", resolve(config, cell)), step, simulated]

    before = values()
    file = project / "methods" / "random_rows.py"
    file.write_text(file.read_text().replace("rank=8", "rank=6"))
    assert [old == new for old, new in zip(before, values(), strict=True)] == 3 * [False]
    config["models"]["roberta-tiny"]["runtime"] = {"precision": "fp32"}
    step = decisive_step(config, "roberta-tiny", "random-rows")
    assert step["runtime"]["precision"] == "fp32"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("../outside.py:Mine", "a path inside this folder"),
        ("/etc/outside.py:Mine", "a path inside this folder"),
        ("a/../../outside.py:Mine", "a path inside this folder"),
        ("methods/random_rows.py", "allowed is FILE.py:CLASS"),
        ("methods/none.py:Mine", "names methods/none.py, and there is no such file; write it"),
    ],
)
def test_a_place_that_will_not_do_is_refused(project: Path, code: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        entry(code=code)
    own = {"extends": "smoke.yaml", "methods": {"mine": {"code": code}}}
    Path("config/bad.yaml").write_text(yaml.safe_dump(own))
    with pytest.raises(UsageError, match="mine"):
        resolve_method(load_config(Path("config/bad.yaml")), "mine")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class Other: ...", "has no class Mine; it has Other"),
        ("", "has no class Mine; it has none"),
        ("class Mine: ...", "Mine is no method; allowed is a subclass of lorasp.Delta"),
        ("Mine = 3", "int is no method"),
        ("from lorasp import Delta as Mine", "Delta is no method"),
        (
            "from lorasp import Delta\nclass Mine(Delta): ...",
            r"Mine has no forward\(self, weight\)",
        ),
        ("from peft import PeftConfig\nclass Mine(PeftConfig): ...", "not registered with PEFT"),
        ("import os\n1 / 0\n", r"mine\.py, line 2: ZeroDivisionError: division by zero"),
        ("def f():\n    import nothing_here\nf()", r"mine\.py, line 2: ModuleNotFoundError: No "),
        ("class Mine(:\n", r"mine\.py, line 1: SyntaxError: "),
        ("import sys\nsys.exit(3)", r"mine\.py, line 2: SystemExit: 3"),
    ],
)
def test_a_file_that_will_not_do_is_told_with_its_line(
    project: Path, source: str, message: str
) -> None:
    from lorasp.adapters.own import load

    Path("methods/mine.py").write_text(source)
    with pytest.raises(UsageError, match=message) as error:
        load(entry(code="methods/mine.py:Mine"))
    assert "\n" not in str(error.value)


def test_a_constructor_that_fails_is_told_with_its_line(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["from lorasp import Delta", "class Mine(Delta):"]
    lines += [
        "    def __init__(self, o, i, g):",
        "        super().__init__(o, i, g)",
        "        {}[3]",
        "    def forward(self, weight): ...",
    ]
    Path("methods/mine.py").write_text("\n".join(lines))
    own = {"extends": "smoke.yaml", "methods": {"mine": {"code": "methods/mine.py:Mine"}}}
    Path("config/bad.yaml").write_text(yaml.safe_dump(own))
    assert main(["methods", "check", "mine", "--config", "config/bad.yaml", "--json"]) == 1
    shown = capsys.readouterr()
    failed = [one for one in json.loads(shown.out) if one["outcome"] == "failed"]
    assert {one["check"] for one in failed} == {"builds"} and len(failed) == 3
    assert "mine.py, line 5: KeyError: 3" in failed[0]["because"]
    assert "1 of 1 methods failed: mine" in shown.err


def test_a_faulty_entry_is_named_and_not_those_like_it(project: Path) -> None:
    def problem(**entry: Any) -> str:
        own = {"extends": "smoke.yaml", "methods": {"z": entry, "a": {"like": "z"}}}
        Path("config/bad.yaml").write_text(yaml.safe_dump(own))
        with pytest.raises(UsageError) as error:
            load_config(Path("config/bad.yaml"))
        return str(error.value)

    assert "methods.z.trainable_rule: 5 is not" in problem(like="lora", trainable_rule=5)
    without_class = problem(code="methods/random_rows.py")
    assert "methods.z.code: found 'methods/random_rows.py'; allowed is FILE.py:CLASS" in (
        without_class
    )
    misspelt = problem(cod="methods/random_rows.py:RandomRows")
    assert "methods.z: " in misspelt and " like, " in misspelt and " code, " in misspelt


@pytest.mark.parametrize(
    ("scale", "there", "new"),
    [("own", [], "mine"), ("mine", [], "mine-2"), ("own", ["mine", "mine-2"], "mine-3")],
)
def test_a_method_without_a_run_is_told_with_what_to_add(
    project: Path, scale: str, there: list[str], new: str
) -> None:
    """What is told to write works as it stands, under a name that no file has."""
    own = yaml.safe_load(block("yaml")) | {"scale": scale}
    own["experiments"][0]["methods"] = ["lora"]
    for name in (scale, *there):
        Path(f"config/{name}.yaml").write_text(yaml.safe_dump(own))
    with pytest.raises(UsageError) as error:
        cells(load_config(Path(f"config/{scale}.yaml")), "random-rows")
    said = str(error.value)
    assert f"random-rows is a method, but in no experiment of {scale}; add it to" in said
    (named,) = re.findall(r"run with scale=(\S+) and a new file config/\1\.yaml of", said)
    assert named == new and not Path(f"config/{named}.yaml").exists()
    written = re.findall(r"'([^']+)'", said)
    assert [line.partition(":")[0] for line in written] == ["extends", "scale", "experiments"]
    Path(f"config/{named}.yaml").write_text("\n".join(written))
    config = load_config(Path(f"config/{named}.yaml"))
    assert config["scale"] == named
    runs = cells(config, "random-rows")
    assert [str(run) for run in runs] == ["roberta-tiny mrpc random-rows stated seed-0"]


def test_whole_configurations_of_the_page_and_the_template_train_the_method(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(project / "site", "mineown", "my-method = mineown:RandomRows", block("python"))
    monkeypatch.syspath_prepend(project / "site")
    write_project(Path("my-method"), "my-method", {})
    readme = Path("my-method/README.md").read_text()
    (written,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    assert written in PAGE
    Path("config/mine.yaml").write_text(written)
    config = load_config(Path("config/mine.yaml"))
    assert [cell.method for cell in cells(config, "my-method")] == ["my-method"] * 2
    assert config["methods"]["my-method"]["settings"] == {"rank": 4}
    for shown in (config, load_config(Path("config/own.yaml"))):
        runs = cells(shown)
        assert {run.recipe for run in runs} == {shown["verdicts"]["recipe"]}  # of the rankings
        (steps,) = shown["profile"]["cells"]
        assert set(steps["methods"]) == {run.method for run in runs} > {"lora"}
    said = plugins.described(Path("my-method/my_method.py"), "MyMethod")
    assert said["label"] == "my-method" and said["trainable_rule"].startswith("r out per adapted")


def test_an_unknown_method_is_told_where_else_to_look(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["methods", "check", "random-rows"]) == 2
    assert "own are found with --config FILE" in capsys.readouterr().err
    assert main(["methods", "check", "random-row", "--config=config/own.yaml"]) == 2
    assert "--config FILE" not in capsys.readouterr().err


@pytest.mark.parametrize("json_alone", [False, True])
def test_of_all_methods_those_with_a_failure_have_a_table(
    project: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    json_alone: bool,
) -> None:
    from lorasp.conformance import ARCHITECTURES, CHECKS, run

    found = {"lora": "passed", "dora": "failed", "osf": "excused", "pissa": "not applicable"}

    def outcomes(method: dict[str, Any]) -> list[dict[str, str]]:
        name = method["name"]
        said = {"method": name, "because": f"of {name}"}
        every = [{**said, "check": c, "architecture": a} for a in ARCHITECTURES for c in CHECKS]
        return [{**one, "outcome": "passed"} for one in every[1:]] + [
            {**every[0], "outcome": found[name]}
        ]

    monkeypatch.setattr(run, "check_everywhere", outcomes)
    few = {name: table()[name] for name in found}
    monkeypatch.setattr("lorasp.commands.table", lambda: few)
    assert main(["methods", "check", "all", *(["--json"] if json_alone else [])]) == 1
    shown = capsys.readouterr()
    assert "1 of 4 methods failed: dora" in shown.err
    if json_alone:
        assert len(json.loads(shown.out)) == 4 * 3 * 19
        return
    lines = shown.out.splitlines()
    assert "lora: 57 passed" in lines and "pissa: 56 passed, 1 not applicable" in lines
    assert "of dora" in shown.out and "of osf" in shown.out and "of pissa" not in shown.out
    assert lines[-4:] == [
        "4 methods on encoder, seq2seq, causal:",
        "  2 passed every check that applies to them",
        "  1 have an excused failure: osf",
        "  1 FAILED: dora",
    ]


def test_a_name_of_the_suite_s_own_is_refused(project: Path) -> None:
    with pytest.raises(UsageError, match=r"methods\.lora is a method of the suite"):
        table({"lora": {"code": "methods/random_rows.py:RandomRows"}})


def test_a_peft_configuration_is_a_method_of_its_own_family(project: Path) -> None:
    from lorasp.adapters.own import load

    lines = ["from dataclasses import dataclass", "from peft import LoraConfig"]
    lines += ["from peft.tuners.lora import LoraModel"]
    lines += ["from lorasp.adapters.tables import register", "@dataclass"]
    lines += ["class Mine(LoraConfig):", "    def __post_init__(self):"]
    lines += ["        super().__post_init__()", "        self.peft_type = 'MINE'"]
    lines += ["register('MINE', Mine, LoraModel)"]
    Path("methods/mine.py").write_text("\n".join(lines))
    assert load(entry(code="methods/mine.py:Mine")) == "MINE"


def environment(*paths: Path) -> dict[str, str]:
    import os

    kept = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**kept, "PYTHONPATH": os.pathsep.join(map(str, paths))}


def test_the_template_is_installed_listed_checked_and_trained(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["methods", "new", "mine", "--name", "my-own"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    pip += ["--no-index", "--no-cache-dir", "--disable-pip-version-check", "--target", "site"]
    subprocess.run([*pip, "./mine"], check=True, capture_output=True)
    place = environment(ROOT, project / "site")
    listed = "from lorasp.methods import table; print(table()['my-own'])"
    shown = run("-c", listed, env=place)
    assert "'entry_point': 'my-own'" in shown and "'settings': {'rank': 8}" in shown
    prepared()
    line = [f"--{key}={value}" for key, value in {**RUN, "method": "my-own", "seed": 0}.items()]
    commands = (["train", "--config=config/own.yaml", *line],)
    tests = "assert pytest.main(['-q', '-p', 'no:cacheprovider', 'mine']) == 0"
    calls = "; ".join(f"assert main({command}) == 0" for command in commands)
    shown = run("-c", f"import pytest; from lorasp.cli import main; {calls}; {tests}", env=place)
    assert "passed" in shown and "FAILED" not in shown and "3 passed" in shown
    assert Path("results/own/roberta-tiny/mrpc/my-own/tuned/seed-0/train.json").is_file()


def run(*arguments: str, env: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("folder", "name", "message"),
    [
        ("config", "mine", "config holds something already"),
        ("new", "lora", "there is a method lora already"),
        ("new", "a b", "allowed is a name of at most 80"),
        ("new", "1st", "Python has no module 1st"),
        ("new", "class", "Python has no module class"),
    ],
)
def test_a_template_is_refused(project: Path, folder: str, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        write_project(Path(folder), name, table())
    assert not Path("new").exists()


def offer(folder: Path, name: str, points: str, source: str | None = None) -> None:
    """Put a package on the path that offers methods, as pip would leave it."""
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[lorasp.methods]\n{points}\n")
    if source is not None:
        (folder / f"{name}.py").write_text(source)


def test_a_broken_package_hurts_no_other(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = project / "site"
    offer(site, "goodone", "good = goodone:RandomRows", block("python"))
    offer(site, "badone", "bad = badone:Mine\nlora = badone:Mine", "raise ValueError('no GPU')")
    offer(site, "goneone", "gone = goneone.deep:Mine")
    monkeypatch.syspath_prepend(site)
    assert {"good", "bad", "gone", "lora"} <= set(entry_points(group=plugins.GROUP).names)
    found = table()
    assert found["good"]["settings"] == {"rank": 8} and found["lora"]["family"] == "LORA"
    assert found["good"]["source"].startswith("W + M R")
    assert "goodone" not in sys.modules and "badone" not in sys.modules  # nothing is imported
    (sentence,) = plugins.left_out(found)
    assert "the entry point lora (badone:Mine) is left out" in sentence
    assert main(["methods", "check", "bad", "gone"]) == 1
    shown = capsys.readouterr()
    assert "badone.py, line 1: ValueError: no GPU" in shown.out.replace("\n    ", " ")
    assert "2 of 2 methods failed: bad, gone" in shown.err


@pytest.mark.parametrize(
    ("point", "source", "words"),
    [
        ("my method = oddone:Mine", "class Mine: ...", "my method"),
        ("../evil = oddone:Mine", "class Mine: ...", "../evil"),
        ("odd = oddone:Mine", "class Mine:\n    label = 5", "odd.label: 5 is not of type"),
        ("odd = oddone:Mine", "class Mine:\n    limits = 'x'", "odd.limits: 'x' is not"),
        ("odd = oddone:Mine", "class Mine:\n    limits = {'builds': 'x'}", "'builds' is not one"),
        ("odd = oddone:Mine", "class Mine:\n    size = ''", "odd.size: '' should be non-empty"),
    ],
)
def test_what_no_table_could_hold_is_left_out_with_a_sentence(
    project: Path, monkeypatch: pytest.MonkeyPatch, point: str, source: str, words: str
) -> None:
    offer(project / "site", "oddone", f"{point}\ngood = oddone:Good", f"{source}\nclass Good: ...")
    monkeypatch.syspath_prepend(project / "site")
    found = load_config(Path("config/own.yaml"))["methods"]
    assert "good" in found and point.partition(" =")[0] not in found
    (sentence,) = plugins.left_out(found)
    assert words in sentence and "its author has to mend it" in sentence


@pytest.mark.parametrize(
    ("value", "source", "words"),
    [
        ("1 2 3", "", "allowed is MODULE:CLASS"),
        ("__main__:Mine", "", "cannot be imported"),
        ("oddtwo:Mine", "class Mine:\n    limits = {[]: 1}\n    size = {1}", "unhashable"),
        ("oddtwo:Mine", "(" * 1000, "SyntaxError|MemoryError"),
    ],
)
def test_an_odd_entry_point_is_told_when_it_is_loaded(
    project: Path, monkeypatch: pytest.MonkeyPatch, value: str, source: str, words: str
) -> None:
    from lorasp.adapters.own import load

    offer(project / "site", "oddtwo", f"odd = {value}", source)
    monkeypatch.syspath_prepend(project / "site")
    monkeypatch.delitem(sys.modules, "oddtwo", raising=False)
    config = load_config(Path("config/own.yaml"))
    assert "limits" not in config["methods"]["odd"] and plugins.left_out(config["methods"]) == []
    with pytest.raises(UsageError, match=words):
        load(resolve_method(config, "odd"))


def test_a_changed_file_of_a_package_trains_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another module of it than the one that has the class, listed or below the class's folder."""
    site = project / "site"
    offer(site, "packed", "packed = packed:Mine")
    (site / "packed").mkdir()
    (site / "packed" / "__init__.py").write_text("class Mine: ...")
    (site / "packed" / "inner.py").write_text("A = 1")
    (site / "beside.py").write_text("B = 1")
    (site / "packed-1.0.dist-info" / "RECORD").write_text("beside.py,,\n")
    monkeypatch.syspath_prepend(site)
    seen = [resolve_method({"methods": table()}, "packed")["code_sha256"]]
    for file in ("packed/inner.py", "beside.py", "packed/__init__.py"):
        (site / file).write_text(f"class Mine: '{file}'")
        seen.append(resolve_method({"methods": table()}, "packed")["code_sha256"])
    (site / "packed-1.0.dist-info" / "METADATA").write_text("Name: packed\nVersion: 1.1\n")
    seen.append(resolve_method({"methods": table()}, "packed")["code_sha256"])
    assert len(set(seen)) == len(seen) == 5


def test_two_packages_with_one_name_are_told(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("oneone", "twotwo"):
        offer(project / name, name, f"same = {name}:Mine", "class Mine: ...")
        monkeypatch.syspath_prepend(project / name)
    with pytest.raises(UsageError, match="offered by oneone and twotwo"):
        plugins.point_of("same")
    with pytest.raises(UsageError, match="no installed package offers a method 'none'"):
        plugins.point_of("none")


def test_loading_an_adapter_imports_no_code_that_it_names(project: Path) -> None:
    from peft import PeftConfig

    bad = {"peft_type": "DELTA", "method": "methods/evil.py:Mine", "target_modules": ["q"]}
    Path("methods/evil.py").write_text("open('ran', 'w')")
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text(json.dumps(bad))
    config = PeftConfig.from_pretrained("adapter")
    with pytest.raises(UsageError, match="no class of that name has been offered"):
        from peft import get_peft_model

        get_peft_model(torch.nn.Sequential(torch.nn.Linear(2, 2)), config)
    assert not Path("ran").exists()
