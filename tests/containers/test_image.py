"""The recipe builds; workflows run in the image by podman and apptainer: `make test-containers`."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from images import BASE, ROOT, run

from lorasp import __version__

pytestmark = pytest.mark.skipif(
    "LORASP_CONTAINERS" not in os.environ, reason="needs the tools that `make test-containers` gets"
)
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line[0] != "#"]
CELL = "roberta-tiny/mrpc/lora-sp/stated/seed-0"


def inside(image: str, program: str, *arguments: str) -> str:
    """What a program in the image prints for a user whom the image does not know."""
    options = ("--rm", "--read-only", "--network", "none", "--user", "4321:4321")
    return run("podman", "run", *options, "--entrypoint", program, image, *arguments)


def test_only_a_base_named_by_digest_is_built_on(
    build: Callable[..., subprocess.CompletedProcess[str]], base: str
) -> None:
    done = build(BASE=BASE)
    assert done.returncode != 0
    assert (
        f"error: BASE is {BASE}, which may be another image tomorrow" in done.stdout + done.stderr
    )
    done = build(BASE=base, VARIANT="gpu")
    assert done.returncode != 0
    assert "error: VARIANT is gpu; allowed are cpu and cuda" in done.stdout + done.stderr


def test_labels_user_and_entry_point(image: str, base: str) -> None:
    config = json.loads(run("podman", "image", "inspect", "--format", "{{json .Config}}", image))
    assert (config["User"], config["Entrypoint"]) == ("lorasp", ["lorasp"])
    told = {key.removeprefix("org.opencontainers.image."): v for key, v in config["Labels"].items()}
    assert told["version"] == __version__
    assert told["revision"].removesuffix("-dirty") == run("git", "rev-parse", "HEAD")
    assert told["licenses"] == "Apache-2.0"
    assert told["base.name"] == base
    assert "torch for cpu" in told["description"]
    assert run("podman", "run", "--rm", image, "--version") == __version__
    assert run("podman", "run", "--rm", "--entrypoint", "id", image, "-u") == "1000"


def test_no_cache_and_no_build_tool_is_left(image: str) -> None:
    script = """
    ls -d /source /opt/sbom /etc/pip.conf /root/.cache /home/lorasp/.cache /tmp/* 2> /dev/null
    find /mnt /root /var/cache/apt /var/lib/apt/lists -type f ! -name lock ! -name '.*rc' \
        ! -name .profile 2> /dev/null
    command -v gcc make
    touch "$HOME/writable" && rm "$HOME/writable"
    """
    assert inside(image, "sh", "-c", script) == ""


def test_sbom_lists_every_pin_and_the_packages_of_the_base(image: str) -> None:
    sbom = json.loads(inside(image, "cat", "/opt/lorasp/sbom.json"))
    assert sbom["bomFormat"] == "CycloneDX"
    parts = sbom["components"]
    found = {part["purl"]: part for part in parts if "purl" in part}
    pins = {f"pkg:pypi/{line.replace('==', '@')}".lower().replace("_", "-") for line in LOCK}
    listed = {purl.partition("%2Bcpu")[0] for purl in found}
    assert pins <= listed
    assert any(part["name"] == "lorasp" for part in parts)
    debian = {part["name"] for purl, part in found.items() if "pkg:deb/" in purl}
    assert debian == set(inside(image, "dpkg-query", "-W", "-f", "${Package}\n").splitlines())


def test_smoke_workflow_runs_with_podman(image: str, checkout: Path) -> None:
    """All of it, as a user without a name and without a network."""
    run(
        *("podman", "run", "--rm", "--network", "none", "--user", "4321:4321"),
        *("--volume", f"{checkout}:/work", image),
        *("serve", "--", "snakemake", "--cores", "2", "--scheduler", "greedy"),
        *("--config", "scale=smoke"),
    )
    assert "LoRA-SP" in (checkout / "reports/smoke/report.html").read_text()
    runs = list((checkout / "results/smoke").glob("*/*/*/*/seed-*"))
    assert len(runs) > 50
    assert all((folder / "metrics.json").is_file() for folder in runs)
    result = json.loads((checkout / "results/smoke" / CELL / "train.json").read_text())
    assert result["provenance"]["git"]["commit"] == run("git", "rev-parse", "HEAD", cwd=checkout)


def test_rules_run_in_apptainer(image: str, checkout: Path, tmp_path: Path) -> None:
    """The rules of a workflow on the host, with the image's Python and the checkout's code."""
    run("make", "sif", f"IMAGE={image}", cwd=checkout)
    calls = tmp_path / "calls.txt"
    wrapper = tmp_path / "bin/apptainer"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\necho "$1" >> {calls}\nexec {shutil.which("apptainer")} "$@"\n')
    wrapper.chmod(0o755)
    run(
        *("env", f"PATH={wrapper.parent}:{os.environ['PATH']}"),
        *(sys.executable, "-m", "snakemake", "--workflow-profile", "apptainer", "--cores", "2"),
        *("--config", "scale=smoke", "only=mrpc,lora-sp,stated,seed-0", "--", "mrpc"),
        cwd=checkout,
    )
    # prepare three times, train, evaluate, audit, report
    assert calls.read_text().splitlines().count("exec") == 7
    result = json.loads((checkout / "results/smoke" / CELL / "train.json").read_text())
    python = inside(image, "python", "-c", "import platform; print(platform.python_version())")
    assert result["provenance"]["python"] == python
    assert result["provenance"]["git"]["commit"] == run("git", "rev-parse", "HEAD", cwd=checkout)
    assert (checkout / "reports/smoke/report.html").is_file()
    assert "containers/lorasp.sif" not in run("git", "status", "--short", cwd=checkout)
