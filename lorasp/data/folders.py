"""A prepared folder: built beside its place, renamed when complete, described by manifest.json."""

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorasp.errors import WorkError
from lorasp.locks import exclusively, take
from lorasp.results import fingerprint, read_json, sha256_of, write_json

MANIFEST = "manifest.json"
Manifest = dict[str, Any]


@contextmanager
def building(folder: Path, source: dict[str, Any], inputs: dict[str, Any]) -> Iterator[Path]:
    """Yield an empty folder to fill; if the block succeeds it gets its manifest and its place.

    What stood in that place is replaced. Raises WorkError, naming the folder, when the disk
    refuses; nothing half-written stays behind.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise WorkError(f"cannot write in {folder.parent}: {error.strerror or error}") from error
    try:
        yield temporary
        write_json(temporary / MANIFEST, _describe(temporary, source, inputs), "manifest")
        temporary.chmod(0o755)  # mkdtemp makes it private; data are for everybody
        _place(temporary, folder)
    except OSError as error:
        raise WorkError(f"cannot make {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already when all went well


def _place(made: Path, folder: Path) -> None:
    """Give a folder its place; what stood there is then at `made`, or removed."""
    if not folder.exists():
        made.rename(folder)
    elif not _exchange(made, folder):
        folder.rename(made / ".replaced")  # for a moment there is none
        made.rename(folder)
        shutil.rmtree(folder / ".replaced")


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders at one stroke, so that readers find the one or the other at any moment.

    False, and nothing done, where the system (Linux alone has renameat2) or the file system cannot.
    """
    system = ctypes.CDLL(None)
    if not hasattr(system, "renameat2"):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    failed: int = system.renameat2(here, bytes(one), here, bytes(other), exchange)
    return failed == 0


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other process prepares the folder meanwhile; what a killed one left of it is removed."""
    with exclusively(_lock_of(folder)):
        for left in folder.parent.glob(f".{folder.name}.????????"):  # as `building` names them
            shutil.rmtree(left, ignore_errors=True)
        yield


def _lock_of(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock"


def _describe(folder: Path, source: dict[str, Any], inputs: dict[str, Any]) -> Manifest:
    files = {
        str(file.relative_to(folder)): _entry(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    content = fingerprint({name: entry["sha256"] for name, entry in files.items()})
    artefacts = ",".join(artefact["sha256"] for artefact in source.get("artefacts", []))
    revision = source.get("revision") or artefacts or content
    return {
        "source": source,
        "inputs": inputs,
        "revision": revision,
        "files": files,
        "fingerprint": content,
    }


def _entry(file: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"sha256": sha256_of(file), "bytes": file.stat().st_size}
    if file.suffix == ".parquet":
        import pyarrow.parquet

        entry["rows"] = pyarrow.parquet.read_metadata(file).num_rows
    elif file.suffix == ".arrow":
        import pyarrow

        with pyarrow.memory_map(str(file)) as memory:
            entry["rows"] = sum(batch.num_rows for batch in pyarrow.ipc.open_stream(memory))
    return entry


def damage(folder: Path, manifest: Manifest, trust_older: bool = False) -> list[str]:
    """One line for each file of the manifest that is missing or has changed.

    `trust_older` hashes only the files that were written after the manifest, which is fast.
    """
    made = (folder / MANIFEST).stat().st_mtime_ns
    lines = []
    for name, entry in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            lines.append(f"{file} is missing")
        elif (size := file.stat().st_size) != entry["bytes"]:
            lines.append(f"{file} is damaged: {size} bytes, not {entry['bytes']}")
        elif trust_older and file.stat().st_mtime_ns <= made:
            continue
        elif (found := sha256_of(file)) != entry["sha256"]:
            lines.append(f"{file} is damaged: sha256 {found}, not {entry['sha256']}")
    return lines


def is_current(folder: Path, source: dict[str, Any], inputs: dict[str, Any]) -> bool:
    """Whether the folder is complete and made from just this; the reason goes to stderr."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        manifest = read_json(folder / MANIFEST, "manifest")
    except WorkError as error:
        _say(f"{error}; making the folder again")
        return False
    if (manifest["source"], manifest["inputs"]) != (source, inputs):
        _say(f"{folder}: its source has changed; making it again")
        return False
    if lines := damage(folder, manifest):
        _say(*lines, f"{folder}: making it again")
        return False
    _say(f"{folder} is complete; nothing to do")
    return True


def forget_damaged(root: Path) -> list[str]:
    """Delete the manifest of every damaged folder below `root`; one line for each reason.

    A folder without its manifest counts as not made, so the workflow makes it again. Reads no file
    that is older than its manifest: fast enough to call whenever the workflow is parsed.
    """
    found = []
    for path in sorted(_manifests(root)):
        if _damaged(path) and (lock := take(_lock_of(path.parent))):
            with lock:  # nobody prepares it; what was seen before may have been two folders
                if lines := _damaged(path):
                    path.unlink(missing_ok=True)
                    found += lines
    return found


def _manifests(root: Path) -> Iterator[Path]:
    """Those below `root`, but of folders that are being built: these come and go meanwhile."""
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if MANIFEST in files:
            yield Path(place, MANIFEST)


def _damaged(manifest: Path) -> list[str]:
    try:
        return damage(manifest.parent, read_json(manifest, "manifest"), trust_older=True)
    except WorkError as error:
        return [str(error)]


def _say(*lines: str) -> None:
    print(*lines, sep="\n", file=sys.stderr)
