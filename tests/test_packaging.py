"""What is installed, pinned and shipped: requirements.lock, pyproject.toml, the wheel."""

import ast
import itertools
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import lorasp

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = {
    canonicalize_name(requirement.name): requirement
    for requirement in map(
        Requirement,
        (line for line in (ROOT / "requirements.lock").read_text().splitlines() if line[:1] != "#"),
    )
}


@pytest.mark.parametrize(
    "wanted", [*PROJECT["dependencies"], *itertools.chain.from_iterable(EXTRAS.values())]
)
def test_every_dependency_is_pinned_within_its_bounds(wanted: str) -> None:
    requirement = Requirement(wanted)
    (pin,) = PINS[canonicalize_name(requirement.name)].specifier
    assert pin.operator == "=="
    assert requirement.specifier.contains(pin.version)


def test_lock_is_portable() -> None:
    assert all(re.fullmatch(r"==[0-9A-Za-z.]+", str(pin.specifier)) for pin in PINS.values())
    assert all(pin.url is None and pin.marker is None for pin in PINS.values())


def test_environment_equals_the_lock() -> None:
    installed = {
        canonicalize_name(distribution.name): Version(distribution.version).public
        # not those on sys.path, to which setuptools adds what it brings along
        for distribution in metadata.distributions(path=[sysconfig.get_path("purelib")])
    }
    assert {name: installed.get(name) for name in PINS} == {
        name: str(pin.specifier).removeprefix("==") for name, pin in PINS.items()
    }


def test_one_version_everywhere() -> None:
    assert metadata.version("lorasp") == lorasp.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == lorasp.__version__
    assert f"## {lorasp.__version__} " in (ROOT / "CHANGELOG.md").read_text()
    assert f"ARG VERSION={lorasp.__version__}\n" in (ROOT / "containers/Containerfile").read_text()


def test_citation_names_suite_and_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "type"} <= set(citation)
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Wu", "Xiang", "Huo", "Gong", "Liang"
    ]  # fmt: skip
    assert "2403.08822" in paper["url"]


def test_config_alone_needs_the_core_dependencies_only() -> None:
    """`pip install lorasp` without the extra `suite` must give LoraSpConfig."""
    modules = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from lorasp import LoraSpConfig\n"
            "for name, module in sorted(sys.modules.items()):\n"
            "    if name.split('.')[0] == 'lorasp': print(module.__file__)",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(modules) > 3
    core = {Requirement(wanted).name for wanted in PROJECT["dependencies"]}
    for module in modules:
        for node in ast.parse(Path(module).read_text()).body:
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom) and node.level == 0
                else []
            )
            imported = {name.split(".")[0] for name in names} - sys.stdlib_module_names
            assert imported <= core | {"lorasp"}, module


def test_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    # setuptools builds beside the sources, so build from a copy
    source = tmp_path / "source"
    files = sorted(
        file
        for file in (ROOT / "lorasp").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    )
    for file in [*files, *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE"))]:
        copy = source / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", tmp_path, source),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("lorasp-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if name.startswith("lorasp/")}
        entry_points = archive.read(next(n for n in archive.namelist() if "entry_points" in n))
    assert shipped == {str(file.relative_to(ROOT)) for file in files}
    assert b"lorasp = lorasp.cli:main" in entry_points
