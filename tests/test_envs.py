"""The conda files parse as conda reads them, pin what the lock pins, and suit the rules."""

import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from rattler import MatchSpec

ROOT = Path(__file__).parents[1]
RULES = sorted((ROOT / "workflow/rules").glob("*.smk"))
ENVS = sorted((ROOT / "envs").glob("*.yaml"))
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line[0] != "#"]
PINS = {canonicalize_name(line.split("==")[0]): line for line in LOCK}
REST = "      # and what these need\n"

# What libraries import by themselves where they find it: no module of ours does.
UNSEEN = {
    "accelerate": "transformers' Trainer, PEFT, and `lorasp train --processes`",
    "gguf": "transformers, for models in this format",
    "protobuf": "transformers, for tokenizers",
    "sentencepiece": "transformers, for tokenizers",
}


def split(text: str) -> tuple[list[MatchSpec], list[Requirement]]:
    """The conda and the pip packages of a file."""
    environment: dict[str, Any] = yaml.safe_load(text)
    assert environment["channels"][0] == "conda-forge"
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    return [MatchSpec(spec) for spec in conda], [Requirement(line) for line in pip]


def names(text: str) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in split(text)[1]}


@pytest.mark.parametrize("file", ENVS, ids=lambda file: file.name)
def test_pins_equal_the_lock(file: Path) -> None:
    conda, pip = split(file.read_text())
    assert {spec.name.normalized for spec in conda} == {"python", "pip"}
    (python,) = (str(spec.version) for spec in conda if spec.name.normalized == "python")
    assert python == "3.11.*"
    assert [str(pin) for pin in pip] == [PINS[canonicalize_name(pin.name)] for pin in pip]
    assert len(names(file.read_text())) == len(pip)


@pytest.mark.parametrize("file", ENVS, ids=lambda file: file.name)
def test_nothing_is_left_for_pip_to_choose(file: Path) -> None:
    """What any listed package requires here is listed, unless torch alone brings it."""
    text = file.read_text()
    listed = names(text)
    for name in listed:
        for wanted in map(Requirement, metadata.requires(name) or []):
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                assert canonicalize_name(wanted.name) in listed, f"{name} needs {wanted}"
                assert Version(metadata.version(wanted.name)) in wanted.specifier
    # and this is what `make lock` writes
    assert runpy.run_path(str(ROOT / "envs/pin.py"))["pinned"](text, PINS) == text


def rules() -> dict[str, tuple[str, Path]]:
    """The command of `python -m lorasp` and the conda file, by rule."""
    found = {}
    for file in RULES:
        for rule in re.split(r"\n(?=\s*rule\b)", file.read_text())[1:]:
            if "shell:" in rule:
                (conda,) = re.findall(r'conda:\s+"([^"]+)"', rule)
                (command,) = re.findall(r"python -m lorasp (\w+)", rule)
                found[rule.split(":")[0].strip() + file.stem] = command, file.parent / conda
    return found


def test_every_rule_has_an_environment_and_none_is_idle() -> None:
    named = {path.resolve() for _, path in rules().values()}
    assert len(rules()) == 12
    assert named == set(ENVS)


def imported(tree: ast.AST, package: str) -> set[str]:
    """Dotted names that code imports, at its top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = f"{package}.{node.module}" if node.level else str(node.module)
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def reached(start: set[str]) -> set[str]:
    """The distributions that modules import, and the modules of ours that these import."""
    seen: set[str] = set()
    todo = set(start)
    while todo:
        seen.add(name := todo.pop())
        path = ROOT.joinpath(*name.split("."))
        files = [file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()]
        # a module that a function asks for is `package.function`: no file, and nothing to follow
        if name.startswith("lorasp") and files and name not in ("lorasp.cli", "lorasp.commands"):
            package = name if files[0].stem == "__init__" else name.rpartition(".")[0]
            todo |= imported(ast.parse(files[0].read_text()), package) | {name.rpartition(".")[0]}
        todo -= seen
    owners = metadata.packages_distributions()
    tops = {name.partition(".")[0] for name in seen} - {"lorasp", *sys.stdlib_module_names}
    return {canonicalize_name(owners[top][0]) for top in tops if top in owners}


def needs_of(command: str) -> set[str]:
    """The distributions that a command imports, as the sources tell."""
    body = ast.parse((ROOT / "lorasp/commands.py").read_text()).body
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    used, todo = set(), {command}
    while todo:
        used.add(name := todo.pop())
        called = {node.id for node in ast.walk(functions[name]) if isinstance(node, ast.Name)}
        todo |= called & set(functions) - used
    code = [node for node in body if not isinstance(node, ast.FunctionDef)]
    code += [functions[name] for name in used]
    return reached({"lorasp.arguments"}.union(*(imported(node, "lorasp") for node in code)))


@pytest.mark.parametrize("file", ENVS, ids=lambda file: file.name)
def test_a_file_names_what_its_stages_import(file: Path) -> None:
    named = names(file.read_text().partition(REST)[0])
    commands = {command for command, path in rules().values() if path.resolve() == file}
    needed = set().union(*map(needs_of, commands))
    assert {"torch", "pyyaml"} <= needed
    assert needed <= named
    assert named - needed <= set(UNSEEN)


CONDA = """#!{python}
# Stands in for conda: it makes an environment of a file from what is installed here, and no more.
import pathlib, sys, venv, yaml
from importlib import metadata

match sys.argv[1:]:
    case ["info", "--json"]:
        print('{{"conda_prefix": "{here}", "platform": "linux-64"}}')
    case ["--version"]:
        print("conda 25.1.0")
    case ["config", *_]:
        print('{{"get": {{"channel_priority": "strict"}}}}')
    case ["env", "create", *options]:
        given = dict(zip(options, options[1:]))
        prefix = pathlib.Path(given["--prefix"])
        venv.create(prefix, symlinks=True)
        (site,) = prefix.glob("lib/python3*/site-packages")
        listed = yaml.safe_load(pathlib.Path(given["--file"]).read_text())["dependencies"][-1]
        for pin in listed["pip"]:
            package = metadata.distribution(pin.split("==")[0])
            for top in {{file.parts[0] for file in package.files}} - {{"..", "__pycache__"}}:
                if not (site / top).exists():
                    (site / top).symlink_to(package.locate_file(top))
    case ["clean", *_]:
        pass
    case other:
        sys.exit(f"no answer to conda {{other}}")
"""


@pytest.mark.slow
def test_stages_run_in_the_environments_of_their_files(tmp_path: Path) -> None:
    """Snakemake's own way with conda files, where only conda itself is played."""
    work, tool = tmp_path / "work", tmp_path / "bin"
    for folder in ("config", "envs", "lorasp", "workflow"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, work / folder, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "Snakefile", work)
    tool.mkdir()
    (tool / "conda").write_text(CONDA.format(python=sys.executable, here=tmp_path))
    (tool / "activate").write_text('export PATH="$1/bin:$PATH"\n')
    (tool / "conda").chmod(0o755)
    environment = {"PATH": f"{tool}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    cell = "results/smoke/roberta-tiny/mrpc/lora-sp/stated/seed-0"
    profile = "results/smoke/profile/roberta-tiny/lora-sp.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "--cores", "2", "--sdm", "conda"),
            *("--config", "scale=smoke", "only=mrpc,lora-sp,stated,seed-0", "--", "mrpc", profile),
        ],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = {path.stem for path in (work / ".snakemake/conda").glob("*.yaml")}
    assert len(made) == len(ENVS)
    versions = json.loads((work / cell / "train.json").read_text())["provenance"]["versions"]
    assert "scikit-learn" in versions and "sacrebleu" not in versions
    versions = json.loads((work / cell / "metrics.json").read_text())["provenance"]["versions"]
    assert "sacrebleu" in versions
    assert (work / "reports/smoke/report.html").is_file()
