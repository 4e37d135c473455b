"""The container recipe builds, and the smoke workflow runs in it with the network cut off."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("podman", "mmdebstrap", "git", "make")

# Podman that is itself in a container can give no network and no limits of its own.
SETTINGS = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
netns = "host"
[engine]
runtime = "runc"
"""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The recipe built on a bare Debian, from the packages that this machine's pip gets."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    place = tmp_path_factory.mktemp("image")
    (place / "containers.conf").write_text(SETTINGS)
    os.environ["CONTAINERS_CONF"] = str(place / "containers.conf")
    run(
        *("mmdebstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates"),
        *("bookworm", place / "base.tar"),
    )
    run("podman", "import", place / "base.tar", "lorasp-test-base")
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--requirement", "requirements.lock"),
        *("--wheel-dir", place / "wheels"),
    )
    (place / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    volumes = f"--volume {place}/wheels:/wheels:ro --volume {place}/pip.conf:/etc/pip.conf:ro"
    run("make", "container", f"CONTAINER_ARGS=--build-arg BASE=lorasp-test-base {volumes}")
    return "lorasp"


@pytest.mark.slow
def test_image_is_a_plain_user_with_lorasp_as_its_command(image: str) -> None:
    assert run("podman", "run", "--rm", image, "--version") == run(
        sys.executable, "-m", "lorasp", "--version"
    )
    assert run("podman", "run", "--rm", "--entrypoint", "id", image, "-u") == "1000"
    where = run("podman", "run", "--rm", "--entrypoint", "find", image, "/root", "-name", "pip")
    assert where == ""


@pytest.mark.slow
def test_smoke_workflow_runs_in_the_image(image: str, tmp_path: Path) -> None:
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard")
    for name in listed.splitlines():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    run(
        *("podman", "run", "--rm", "--network", "none", "--user", str(os.getuid())),
        *("--volume", f"{tmp_path}:/work", image),
        *("serve", "--", "snakemake", "--cores", "2", "--config", "scale=smoke"),
    )
    assert "LoRA-SP" in (tmp_path / "reports/smoke/report.html").read_text()
    runs = list((tmp_path / "results/smoke").glob("*/*/*/*/seed-*"))
    assert len(runs) > 50
    assert all((folder / "metrics.json").is_file() for folder in runs)
