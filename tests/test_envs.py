"""The conda files parse as conda reads them, pin what the lock pins, and suit the rules."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from rattler import MatchSpec

ROOT = Path(__file__).parents[1]
ENVS = sorted((ROOT / "envs").glob("*.yaml"))
LOCK = dict(
    line.split("==")
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if not line.startswith("#")
)
PINS = {canonicalize_name(name): Version(version) for name, version in LOCK.items()}


def split(file: Path) -> tuple[list[MatchSpec], list[Requirement]]:
    """The conda and the pip packages of a file."""
    environment: dict[str, Any] = yaml.safe_load(file.read_text())
    assert environment["channels"][0] == "conda-forge"
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    return [MatchSpec(spec) for spec in conda], [Requirement(line) for line in pip]


@pytest.mark.parametrize("file", ENVS, ids=lambda file: file.name)
def test_pins_equal_the_lock(file: Path) -> None:
    conda, pip = split(file)
    specs = {spec.name.normalized: str(spec.version) for spec in conda}
    assert specs.pop("python") == "3.11.*"
    assert "pip" in specs  # which installs the rest
    for name, version in specs.items():
        assert name == "pip" or version == f"=={PINS[canonicalize_name(name)]}"
    for requirement in pip:
        assert str(requirement.specifier) == f"=={PINS[canonicalize_name(requirement.name)]}"


def test_suite_holds_every_dependency_of_the_stages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {
        canonicalize_name(Requirement(line).name)
        for line in project["dependencies"] + project["optional-dependencies"]["suite"]
    }
    # snakemake and its report run outside, and start the stages in this environment
    wanted -= {"snakemake", "pygments"}
    assert {canonicalize_name(entry.name) for entry in split(ROOT / "envs/suite.yaml")[1]} == wanted


def test_every_rule_names_an_environment_that_exists() -> None:
    named = set()
    for rules in (ROOT / "workflow/rules").glob("*.smk"):
        for path in re.findall(r'conda:\s+"([^"]+)"', rules.read_text()):
            named.add((rules.parent / path).resolve())
    assert named == {file.resolve() for file in ENVS}
