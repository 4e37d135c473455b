"""Checkpoints of a run: sealed by a manifest of sha256, the damaged ones passed over, two kept."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch.distributed.checkpoint import CheckpointException

from lorasp.errors import WorkError
from lorasp.results import atomic, sha256_of

NAME = "checkpoint-"  # and the number of steps taken
MANIFEST = "manifest.json"
TORCH_WRITER = ("inline_container", "PytorchStreamWriter")


def seal(folder: Path, needs: Path | None = None, known: dict[str, str] | None = None) -> None:
    """Write the manifest of a checkpoint's files, which makes it complete.

    `needs` is another checkpoint without which this one is of no use: the best one so far. `known`
    has the sha256 of files, by name, that those who wrote them have computed.
    """
    files = dict(known or {})
    for file in sorted(folder.rglob("*")):
        if file.is_file() and (name := file.relative_to(folder).as_posix()) not in files:
            files[name] = sha256_of(file)
    manifest = {"files": files, "needs": needs.name if needs else None}
    with atomic(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n")


def is_sealed(folder: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    return (folder / MANIFEST).exists()


def newest_sound(root: Path) -> Path | None:
    """The checkpoint of the most steps in `root` that is whole; a line on stderr for each other."""
    for folder in reversed(checkpoints_of(root)):
        problem = _problem(folder)
        if problem is None:
            return folder
        print(f"warning: {folder} is passed over: {problem}", file=sys.stderr)
    return None


def _problem(folder: Path, alone: bool = False) -> str | None:
    """Why a checkpoint cannot be gone on from, or None.

    `alone`: whether only its own files count, and not the best one at its time.
    """
    if not is_sealed(folder):
        return "it was not written to its end"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files, needs = dict(manifest["files"]), manifest["needs"]
    except (OSError, ValueError, TypeError, KeyError):
        return f"its {MANIFEST} is damaged"
    for name, digest in files.items():
        if not (folder / name).is_file():
            return f"its {name} is missing"
        if sha256_of(folder / name) != digest:
            return f"its {name} is damaged"
    if needs in (None, folder.name) or alone:
        return None
    problem = _problem(folder.parent / needs, alone=True)
    return f"{needs}, the best one so far, cannot be read: {problem}" if problem else None


def checkpoints_of(root: Path) -> list[Path]:
    """All checkpoints in a folder, whole or not, by the number of their steps."""
    found = [folder for folder in root.glob(f"{NAME}*") if folder.name[len(NAME) :].isdecimal()]
    return sorted(found, key=steps_of)


def steps_of(folder: Path) -> int:
    """The number of steps after which a checkpoint was taken."""
    return int(folder.name.removeprefix(NAME))


def rotate(newest: Path, keep: int, best: Path | None) -> None:
    """Remove all checkpoints beside `newest` but the best and the last before it, `keep` in all.

    Those of more steps than `newest` are left-overs of a part of the run that is done again.
    """
    found = checkpoints_of(newest.parent)
    kept = {*found[: found.index(newest) + 1][-keep:], best}
    for folder in found:
        if folder not in kept:
            remove(folder)


def remove(folder: Path) -> None:
    """Remove a checkpoint, its manifest first: what is left half-way is not taken for damaged."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Write and seal a checkpoint in this block, else nothing is left of it.

    Raises WorkError where the disk refuses.
    """
    try:
        with disk_errors(folder):
            remove(folder)
            folder.mkdir(parents=True)
            yield
    finally:
        if not is_sealed(folder):
            remove(folder)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise WorkError where the disk refuses what this block writes of a checkpoint."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError, CheckpointException) as error:
        if (reason := _refusal(error)) is None:
            raise
        free = shutil.disk_usage(folder.parent).free / 2**20
        raise WorkError(
            f"cannot write {folder} ({reason}; {free:.1f} MiB are free there): make room and start "
            "again, which goes on from the last checkpoint"
        ) from error


def _refusal(error: BaseException) -> str | None:
    """What the disk says, in one line, or None where the error is not the disk's."""
    if isinstance(error, CheckpointException):  # what several processes met, by rank
        found = (_refusal(one) for one, _ in error.failures.values())
        return next((reason for reason in found if reason), None)
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # torch tells of it by a RuntimeError about its own bookkeeping
    if isinstance(error, SafetensorError) or any(name in str(error) for name in TORCH_WRITER):
        return " ".join(str(error).split())
    return None
