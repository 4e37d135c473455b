"""What `make container` asks of its tools, with stand-ins; tests/containers builds the image."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from lorasp.bench.pipeline import copy_checkout

ROOT = Path(__file__).parents[1]
DIGEST = f"sha256:{'0123456789abcdef' * 4}"
SKOPEO = f"""#!/bin/sh
echo "$@" >> asked.txt
echo docker.io/library/debian@{DIGEST}
"""
PODMAN = """#!/bin/sh
printf '%s\\n' "$@" > built.txt
"""


def tool(folder: Path, name: str, script: str) -> dict[str, str]:
    """The environment in which a script is the command of this name."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def test_the_digest_of_the_base_is_asked_for_once_and_kept(tmp_path: Path) -> None:
    work, tools = tmp_path / "work", tmp_path / "bin"
    (work / "containers").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", work)
    tool(tools, "skopeo", SKOPEO)
    environment = tool(tools, "podman", PODMAN)
    subprocess.run(["git", "init", "--quiet"], cwd=work, check=True)
    origin = "https://someone:secret@example.org/lorasp.git"
    subprocess.run(["git", "remote", "add", "origin", origin], cwd=work, check=True)

    def build(*arguments: str) -> list[str]:
        make = ["make", "container", *arguments]
        subprocess.run(make, cwd=work, env=environment, check=True, capture_output=True)
        return (work / "built.txt").read_text().splitlines()

    first, second = build(), build("VARIANT=cpu")
    pinned = f"docker.io/library/debian@{DIGEST}"
    assert (work / "containers/base.txt").read_text().strip() == pinned
    assert len((work / "asked.txt").read_text().splitlines()) == 1
    assert f"BASE={pinned}" in first and f"BASE={pinned}" in second
    assert "VARIANT=cuda" in first and "lorasp:cuda" in first
    assert "VARIANT=cpu" in second and "lorasp:cpu" in second
    assert "SOURCE=https://example.org/lorasp.git" in first
    assert f"BASE=other@{DIGEST}" in build(f"BASE=other@{DIGEST}")


def test_what_the_recipe_copies_is_in_the_build_context() -> None:
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    recipe = (ROOT / "containers/Containerfile").read_text()
    copied = [line.split()[1:-1] for line in recipe.splitlines() if re.match("COPY [^-]", line)]
    tops = {source.partition("/")[0] for line in copied for source in line}
    assert tops == set(allowed)
    assert all((ROOT / source).exists() for line in copied for source in line)


def test_a_missing_image_is_said_before_anything_starts(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    copy_checkout(ROOT, work)
    (work / "containers/lorasp.sif").unlink(missing_ok=True)
    environment = tool(tmp_path / "bin", "apptainer", "#!/bin/sh\necho apptainer version 1.4.5\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "--workflow-profile", "apptainer"),
            *("--cores", "1", "--config", "scale=smoke", "--", "results/audit.json"),
        ],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "there is no containers/lorasp.sif, and nothing was started" in done.stderr
    assert not (work / "results").exists()
