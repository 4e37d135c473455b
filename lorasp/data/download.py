"""Files of a repository of the Hugging Face hub at one commit: checked, resumed, tried again."""

import fnmatch
import hashlib
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import httpx2  # the HTTP client of huggingface-hub
from huggingface_hub import HfApi, RepoFile, constants, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    parse_ratelimit_headers,
)

from lorasp.errors import WorkError
from lorasp.locks import exclusively
from lorasp.results import read_json, write_json

TRIES = 6  # without a new byte in between; the waits between them are 1, 2, 4, 8 and 16 s
LONGEST_WAIT = 300  # seconds that a hub may ask for
TRANSIENT = (408, 429, 500, 502, 503, 504)
LISTING = ".listing.json"
BLOCK = 1 << 20
Source = dict[str, Any]


class Entry(NamedTuple):
    """A file of the repository: `sha256` of one in large-file storage, else git's blob id."""

    path: str
    size: int
    sha256: str | None
    blob: str


def listing(source: Source, repo_type: str, place: Path) -> list[Entry]:
    """The files of the commit as the hub lists them; kept in `place`, for a commit never changes.

    Raises WorkError where the hub does not have it, does not show it or does not answer.
    """
    kept = place / LISTING
    if kept.is_file():
        return [Entry(**entry) for entry in read_json(kept, "listing")["files"]]
    try:
        found = list(
            HfApi().list_repo_tree(
                source["id"], repo_type=repo_type, revision=source["revision"], recursive=True
            )
        )
    except (httpx2.HTTPError, OSError) as error:
        raise WorkError(explain(source, error)) from error
    except ValueError as error:  # a proxy's page of its own, for one
        raise WorkError(
            f"what {constants.ENDPOINT} answers on {_name(source)} cannot be read: "
            f"{' '.join(str(error).split())}"
        ) from error
    files = [
        Entry(file.path, file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)
        for file in found
        if isinstance(file, RepoFile)
    ]
    document = {key: source[key] for key in ("id", "revision")}
    write_json(kept, document | {"files": [file._asdict() for file in files]}, "listing")
    return files


def fetch(source: Source, repo_type: str, patterns: Iterable[str], folder: Path) -> Path:
    """Have the files whose path matches a shell pattern; the folder of the repository they lie in.

    A file that lies there with the hash of the listing is not fetched again. What an interrupted
    download left is gone on from, in this process or a later one. Raises WorkError.
    """
    place = folder / f"{repo_type}--{source['id'].replace('/', '--')}@{source['revision']}"
    with exclusively(place / ".lock"):  # the tasks of GLUE share one repository
        wanted = matching(listing(source, repo_type, place), patterns)
        missing = [entry for entry in wanted if not _is_sound(place / entry.path, entry)]
        _check_space(source, sum(entry.size for entry in missing), place)
        for entry in missing:
            _fetch(source, repo_type, entry, place / entry.path)
    return place


def matching(entries: list[Entry], patterns: Iterable[str]) -> list[Entry]:
    """The entries whose path fits one of the shell patterns."""
    chosen = tuple(patterns)
    return [
        entry
        for entry in entries
        if any(fnmatch.fnmatchcase(entry.path, pattern) for pattern in chosen)
    ]


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


def _check_space(source: Source, needed: int, place: Path) -> None:
    free = shutil.disk_usage(place).free
    if needed > free:
        raise WorkError(
            f"{_name(source)} needs {needed / 2**30:.1f} GiB more in {place} and its disk has "
            f"{free / 2**30:.1f} GiB: free some, or set data_dir to another disk"
        )


def _fetch(source: Source, repo_type: str, entry: Entry, file: Path) -> None:
    """Download a file beside its place and move it there if it is what the hub lists."""
    partial = file.with_name(f".{file.name}.partial")
    url = hf_hub_url(
        source["id"],
        entry.path,
        repo_type=repo_type,
        revision=source["revision"],
        endpoint=constants.ENDPOINT,
    )
    for again in (True, False):
        _download(source, url, entry, partial)
        difference = _difference(partial, entry)
        if difference is None:
            partial.replace(file)
            return
        partial.unlink()
        _say(f"{entry.path} of {_name(source)} has {difference}", again)
    raise WorkError(
        f"{entry.path} of {_name(source)} has {difference}, twice in a row, and is not kept: "
        "something between here and the hub changes it; try another connection or proxy"
    )


def _say(what: str, again: bool) -> None:
    print(f"{what}; {'downloading it again' if again else 'not kept'}", file=sys.stderr)


def _download(source: Source, url: str, entry: Entry, partial: Path) -> None:
    """Append to `partial` until it has the file's size, with waits between failed tries."""
    tries = 0
    while True:
        before = _size(partial)
        try:
            _append(url, entry, partial)
            return
        except (httpx2.HTTPError, OfflineModeIsEnabled) as error:
            tries = 1 if _size(partial) > before else tries + 1
            wait = _wait(error, tries)
            if wait is None or tries >= TRIES:
                raise WorkError(explain(source, error, entry.path)) from error
            print(
                f"{entry.path} of {_name(source)}: {_reason(error)} after {_size(partial)} of "
                f"{entry.size} bytes; trying again in {wait:g} s ({tries} of {TRIES - 1})",
                file=sys.stderr,
            )
            time.sleep(wait)


def _size(partial: Path) -> int:
    return partial.stat().st_size if partial.is_file() else 0


def _wait(error: Exception, tries: int) -> float | None:
    """Seconds until the next try; None for what another try cannot mend."""
    if isinstance(error, HfHubHTTPError):
        if error.response.status_code not in TRANSIENT:
            return None
        headers = error.response.headers
        allowance = parse_ratelimit_headers(headers)
        asked = headers.get("Retry-After", "")
        if allowance and not allowance.remaining:
            asked = str(allowance.reset_in_seconds)
        if asked.isdecimal():
            return float(asked) if int(asked) <= LONGEST_WAIT else None
    return None if isinstance(error, OfflineModeIsEnabled) else 2.0 ** (tries - 1)


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


def _name(source: Source) -> str:
    return f"{source['id']} at revision {source['revision']}"


def _reason(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"HTTP status {error.response.status_code}"
    return f"{type(error).__name__} ({' '.join(str(error).split())})"


def explain(source: Source, error: Exception, path: str | None = None) -> str:
    """One sentence on a request that failed for good, and what to do."""
    what = _name(source)
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    page = f"{constants.ENDPOINT}/{source['id']}"
    match error:
        case GatedRepoError() if status == 401:
            return (
                f"{what} is gated, and no token came with the request: accept its licence on "
                f"{page}, then `hf auth login` or set HF_TOKEN"
            )
        case GatedRepoError():
            return (
                f"{what} is gated, and the account of the token has not been let in: accept its "
                f"licence on {page}, wait until it is granted, and run this again"
            )
        case RevisionNotFoundError():
            return f"{source['id']} has no revision {source['revision']}: correct the pin"
        case RepositoryNotFoundError():
            return (
                f"the hub has no {source['id']}, or shows it only to those who log in: correct the "
                "id, or `hf auth login`"
            )
        case EntryNotFoundError():
            return f"{what} has no file {path}, which it lists: the hub is at fault; try later"
    if status == 401:
        return f"the hub does not know the token that asks for {what}: `hf auth login` again"
    if status == 429:
        return (
            f"the hub refuses more requests for now (HTTP status 429, for {what}): wait some "
            "minutes, log in with `hf auth login` for a larger allowance, and run this again; what "
            "has been downloaded is kept"
        )
    if status is not None:
        return (
            f"the hub fails on {path or 'the list of files'} of {what} (HTTP status {status}), "
            f"{TRIES} tries in a row: run this again later; what has been downloaded is kept"
        )
    return (
        f"the Hugging Face hub cannot be reached for {what} ({type(error).__name__}): connect this "
        "machine and unset HF_HUB_OFFLINE, run this again (what has been downloaded is kept), or "
        "run `make mini`, which needs no hub"
    )
