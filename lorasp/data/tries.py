"""A request to the Hugging Face hub, tried again while that may help; what is said where not."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx2  # the HTTP client of huggingface-hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers

from lorasp.errors import WorkError

TRIES = 6  # without a new byte in between; the waits between them are 1, 2, 4, 8 and 16 s
LONGEST_WAIT = 300  # seconds that a hub may ask for
TRANSIENT = (408, 429, 500, 502, 503, 504)
Source = dict[str, Any]
Answer = TypeVar("Answer")


def keep_trying(
    attempt: Callable[[], Answer],
    source: Source,
    path: str = "the list of files",
    size: int = 0,
    partial: Path | None = None,
) -> Answer:
    """What `attempt` returns, with waits between failed tries; WorkError where they are in vain.

    It is for a file of so many bytes, whose every new byte in `partial` starts the count anew; or,
    without these, for something else that `path` names.
    """
    tries = 0
    while True:
        before = size_of(partial)
        try:
            return attempt()
        except (httpx2.HTTPError, OSError) as error:
            tries = 1 if size_of(partial) > before else tries + 1
            wait = _wait(error, tries)
            if wait is None or tries >= TRIES:
                raise WorkError(explain(source, error, path, tries)) from error
            came = f" after {size_of(partial)} of {size} bytes" if partial else ""
            print(
                f"{path} of {name_of(source)}: {_reason(error)}{came}; "
                f"trying again in {wait:g} s ({tries} of {TRIES - 1})",
                file=sys.stderr,
            )
            time.sleep(wait)


def size_of(partial: Path | None) -> int:
    """The bytes that there are of a file."""
    return partial.stat().st_size if partial and partial.is_file() else 0


def _wait(error: Exception, tries: int) -> float | None:
    """Seconds until the next try; None for what another try cannot mend."""
    if isinstance(error, HfHubHTTPError):
        if error.response.status_code not in TRANSIENT:
            return None
        asked = _asked_wait(error)
        if asked is not None:
            return asked if asked <= LONGEST_WAIT else None
    elif not isinstance(error, httpx2.HTTPError) or isinstance(error, httpx2.UnsupportedProtocol):
        return None
    return 2.0 ** (tries - 1)


def _asked_wait(error: HfHubHTTPError) -> int | None:
    """The seconds that the hub asks to wait, where it says."""
    headers = error.response.headers
    allowance = parse_ratelimit_headers(headers)
    if allowance and not allowance.remaining:
        return int(allowance.reset_in_seconds)
    asked = headers.get("Retry-After", "").strip()
    return int(asked) if asked.isdecimal() else None


def name_of(source: Source) -> str:
    """A repository at its commit, in words."""
    return f"{source['id']} at revision {source['revision']}"


def _reason(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"HTTP status {error.response.status_code}"
    return f"{type(error).__name__} ({' '.join(str(error).split())})"


def explain(source: Source, error: Exception, path: str, tries: int) -> str:
    """One sentence on a request that failed for good, after so many tries, and what to do."""
    what = name_of(source)
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
    if isinstance(error, HfHubHTTPError):
        asked = _asked_wait(error)
        long = f"{asked} s" if asked and asked > LONGEST_WAIT else None
        if status == 429:
            return (
                f"the hub refuses more requests for now (HTTP status 429, for {what}): wait "
                f"{long or 'some minutes'}, log in with `hf auth login` for a larger allowance, "
                "and run this again; what has been downloaded is kept"
            )
        about = f"{path} of {what} (HTTP status {status})"
        if error.response.is_client_error and status not in TRANSIENT:
            return (
                f"the hub refuses {about}: see that HF_ENDPOINT and the proxy are the ones you "
                "mean and that the account of the token may read it, then run this again"
            )
        row = f", {tries} tries in a row" if tries > 1 else ""
        return (
            f"the hub fails on {about}{row}: run this again {f'in {long}' if long else 'later'}; "
            "what has been downloaded is kept"
        )
    return (
        f"the Hugging Face hub cannot be reached for {what} ({type(error).__name__}): connect this "
        "machine and unset HF_HUB_OFFLINE, run this again (what has been downloaded is kept), or "
        "run `make mini`, which needs no hub"
    )
