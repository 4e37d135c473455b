"""Files of a repository of the Hugging Face hub at one commit: checked, resumed, tried again."""

import fnmatch
import functools
import hashlib
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import httpx2  # the HTTP client of huggingface-hub
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from lorasp.data.tries import Source, keep_trying, name_of, size_of
from lorasp.errors import WorkError
from lorasp.locks import exclusively
from lorasp.results import read_json, write_json

LISTING = ".listing.json"
STAND_IN = "X-Stand-In"  # a header of what is no hub but a rehearsal's stand-in
BLOCK = 1 << 20


class Entry(NamedTuple):
    """A file of the repository: `sha256` of one in large-file storage, else git's blob id."""

    path: str
    size: int
    sha256: str | None
    blob: str


def listing(source: Source, repo_type: str, place: Path, real: bool = False) -> list[Entry]:
    """The files of the commit as the hub lists them; kept in `place`, for a commit never changes.

    Raises WorkError where the hub does not have it, does not show it or does not answer, and, if
    they must be `real`, where they are those of a rehearsal's stand-in.
    """
    kept = place / LISTING
    found = read_json(kept, "listing") if kept.is_file() else _ask(source, repo_type)
    if real and "stand_in" in found:
        raise WorkError(
            f"{name_of(source)} would be a stand-in's invention under the true name, which only a "
            "configuration with `no_result` may use: run this without `lorasp rehearse`, with "
            f"HF_ENDPOINT unset, after `rm -rf {place}`"
        )
    if not kept.is_file():
        write_json(kept, found, "listing")
    return [Entry(**entry) for entry in found["files"]]


def _ask(source: Source, repo_type: str) -> dict[str, Any]:
    """The hub's list of the files, page after page, as `listing` keeps it."""
    found: dict[str, Any] = {key: source[key] for key in ("id", "revision")} | {"files": []}
    page = f"{constants.ENDPOINT}/api/{repo_type}s/{source['id']}/tree/{source['revision']}"
    page += "?recursive=true"
    while page:
        response = keep_trying(functools.partial(_get, page), source)
        try:
            found["files"] += [
                Entry(file["path"], file["size"], (file.get("lfs") or {}).get("oid"), file["oid"])
                for file in response.json()
                if file["type"] == "file"
            ]
        except (ValueError, LookupError, TypeError, AttributeError) as error:  # a proxy's page
            raise WorkError(
                f"what {constants.ENDPOINT} answers on {name_of(source)} cannot be read: "
                f"{' '.join(str(error).split())}"
            ) from error
        if STAND_IN in response.headers:
            found["stand_in"] = True
        page = response.links.get("next", {}).get("url", "")
    return found | {"files": [entry._asdict() for entry in found["files"]]}


def _get(page: str) -> httpx2.Response:
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    response = get_session().get(page, headers=build_hf_headers(), timeout=timeout)
    hf_raise_for_status(response)
    return response


def fetch(
    source: Source, repo_type: str, patterns: Iterable[str], folder: Path, real: bool = False
) -> Path:
    """Have the files whose path matches a pattern; the folder of the repository they lie in.

    A file that lies there with the hash of the listing is not fetched again. What an interrupted
    download left is gone on from, in this process or a later one. Raises WorkError, as does
    `listing`, which says what is `real`.
    """
    place = folder / f"{repo_type}--{source['id'].replace('/', '--')}@{source['revision']}"
    with exclusively(place / ".lock"):  # the tasks of GLUE share one repository
        wanted = matching(listing(source, repo_type, place, real), patterns)
        missing = [entry for entry in wanted if not _is_sound(place / entry.path, entry)]
        _check_space(source, missing, place)
        for entry in missing:
            _fetch(source, repo_type, entry, place / entry.path)
    return place


def matching(entries: list[Entry], patterns: Iterable[str]) -> list[Entry]:
    """The entries whose path is one of the patterns or fits it.

    They are the hub's: `*` stays inside a folder, and `**` is any number of folders, or none.
    """
    exact = set(patterns)
    parts = [pattern.split("/") for pattern in exact]
    return [
        entry
        for entry in entries
        if entry.path in exact or any(_fits(entry.path.split("/"), part) for part in parts)
    ]


def _fits(path: list[str], pattern: list[str]) -> bool:
    if not path or not pattern:
        return path == pattern
    if pattern[0] == "**":
        return pattern[1:] == [] or _fits(path, pattern[1:]) or _fits(path[1:], pattern)
    return fnmatch.fnmatchcase(path[0], pattern[0]) and _fits(path[1:], pattern[1:])


def _is_sound(file: Path, entry: Entry) -> bool:
    return file.is_file() and file.stat().st_size == entry.size and not _difference(file, entry)


def _difference(file: Path, entry: Entry) -> str | None:
    """How the file's hash differs from the listing's; None where it does not."""
    if entry.sha256:
        kind, wanted, digest = "sha256", entry.sha256, hashlib.sha256()
    else:
        kind, wanted, digest = "git blob id", entry.blob, hashlib.sha1(usedforsecurity=False)
        digest.update(f"blob {file.stat().st_size}\0".encode())
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            digest.update(block)
    found = digest.hexdigest()
    return None if found == wanted else f"{kind} {found}, not {wanted} as the hub lists it"


def _check_space(source: Source, missing: list[Entry], place: Path) -> None:
    needed = sum(
        entry.size - min(entry.size, size_of(_partial(place / entry.path))) for entry in missing
    )
    free = shutil.disk_usage(place).free
    if needed > free:
        raise WorkError(
            f"{name_of(source)} needs {needed / 2**30:.1f} GiB more in {place} and its disk has "
            f"{free / 2**30:.1f} GiB: free some, or move a folder above it to another disk and "
            "put a link to it in its place (`ln -s`)"
        )


def _fetch(source: Source, repo_type: str, entry: Entry, file: Path) -> None:
    """Download a file beside its place and move it there if it is what the hub lists."""
    partial = _partial(file)
    url = hf_hub_url(
        source["id"],
        entry.path,
        repo_type=repo_type,
        revision=source["revision"],
        endpoint=constants.ENDPOINT,
    )
    for again in (True, False):
        keep_trying(
            functools.partial(_append, url, entry, partial), source, entry.path, entry.size, partial
        )
        difference = _difference(partial, entry)
        if difference is None:
            partial.replace(file)
            return
        partial.unlink()
        _say(f"{entry.path} of {name_of(source)} has {difference}", again)
    raise WorkError(
        f"{entry.path} of {name_of(source)} has {difference}, twice in a row, and is not kept: "
        "something between here and the hub changes it; try another connection or proxy"
    )


def _partial(file: Path) -> Path:
    """Where a file is while it is not whole."""
    return file.with_name(f".{file.name}.partial")


def _say(what: str, again: bool) -> None:
    print(f"{what}; {'downloading it again' if again else 'not kept'}", file=sys.stderr)


def _append(url: str, entry: Entry, partial: Path) -> None:
    """One request for what is missing of a file.

    Raises WorkError where the disk refuses, httpx2.HTTPError for all else.
    """
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("ab") as file:
            if file.tell() > entry.size:
                file.truncate(0)
            if file.tell() == entry.size:
                return
            if file.tell():
                headers["Range"] = f"bytes={file.tell()}-"
            timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
            with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
                hf_raise_for_status(response)
                if response.status_code != httpx2.codes.PARTIAL_CONTENT:
                    file.truncate(0)
                for block in response.iter_bytes():
                    file.write(block)
            if file.tell() < entry.size:
                raise httpx2.RemoteProtocolError("the connection was closed early")
    except OfflineModeIsEnabled:
        raise
    except OSError as error:
        if isinstance(error, httpx2.HTTPError):
            raise
        raise WorkError(f"cannot write {partial}: {error.strerror or error}") from error
