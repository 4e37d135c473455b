"""An image built once from the recipe, in a store of its own that is removed at the end."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from images import BASE, IMAGE, ROOT, run

# Podman that is itself in a container can give no network and no limits of its own.
CONTAINERS = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
netns = "host"
[engine]
runtime = "runc"
"""
STORAGE = """
[storage]
driver = "overlay"
graphroot = "{place}/graph"
runroot = "{place}/run"
"""


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose images and other large files do not outlive the tests."""
    place = tmp_path_factory.mktemp("containers")
    (place / "containers.conf").write_text(CONTAINERS)
    (place / "storage.conf").write_text(STORAGE.format(place=place))
    os.environ["CONTAINERS_CONF"] = str(place / "containers.conf")
    os.environ["CONTAINERS_STORAGE_CONF"] = str(place / "storage.conf")
    yield place
    run("podman", "rmi", "--all", "--force")
    shutil.rmtree(place)


@pytest.fixture(scope="session")
def build(place: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`make container` with buildah, on a bare Debian, from the packages that pip gets here."""
    run(
        *("mmdebstrap", "--variant=minbase", "--include=ca-certificates,git,python3,python3-venv"),
        *("bookworm", place / "base.tar"),
    )
    run("podman", "import", place / "base.tar", BASE)
    (place / "base.tar").unlink()
    for lock in ("requirements.lock", "containers/sbom.lock"):
        wheels = (*("wheel", "--quiet", "--requirement", lock), "--wheel-dir", place / "wheels")
        run(sys.executable, "-m", "pip", *wheels)
    arguments = f"--volume {place}/wheels:/mnt:ro --build-arg PIP_NO_INDEX=1"
    arguments += " --build-arg PIP_FIND_LINKS=/mnt"

    def build(**variables: str) -> subprocess.CompletedProcess[str]:
        given = {"ENGINE": "buildah", "IMAGE": IMAGE, "CONTAINER_ARGS": arguments, **variables}
        command = ["make", "container", *(f"{key}={value}" for key, value in given.items())]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    return build


@pytest.fixture(scope="session")
def base() -> str:
    """The base by its digest."""
    return f"{BASE}@{run('podman', 'image', 'inspect', '--format', '{{.Digest}}', BASE)}"


@pytest.fixture(scope="session")
def image(build: Callable[..., subprocess.CompletedProcess[str]], base: str) -> str:
    done = build(BASE=base, VARIANT="cpu")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return IMAGE


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone with the files as they are here, which every user may write."""
    work = tmp_path / "work"
    run("git", "clone", "--quiet", ROOT, work)
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate")
    for name in listed.splitlines():
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).unlink(missing_ok=True)
            shutil.copy(ROOT / name, work / name, follow_symlinks=False)
        else:
            (work / name).unlink(missing_ok=True)
    for path in (work, *work.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o777 if path.is_dir() else 0o666))
    return work
