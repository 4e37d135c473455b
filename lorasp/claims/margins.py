"""Since when the margins of a claims file stand as they are: they must be older than the runs."""

import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from lorasp.claims import Document, claims_file, load_claims
from lorasp.results import fingerprint, parse_yaml, sha256_of

# What decides a verdict once the results are in; a note or a quotation does not.
DECISIVE = (
    *("id", "kind", "value", "model", "method", "task", "metric", "left", "right", "test"),
    *("models", "tasks", "measure", "margin", "family", "scales", "unjudged"),
)


def decisive(document: Document) -> dict[str, Any]:
    """The part of a claims file that must be fixed before the results are known.

    A check needs no runs, and so is not part of it; that no run can judge a claim is.
    """
    judged = [c for c in document["claims"] if "check" not in c or "unjudged" in c]
    margins = document.get("margins", {})
    return {
        "recipe": document["paper"].get("recipe"),
        "margins": {name: [entry["value"], entry["unit"]] for name, entry in margins.items()},
        "claims": [{key: claim[key] for key in DECISIVE if key in claim} for claim in judged],
    }


def history(name: str, first_run: str | None) -> dict[str, Any]:
    """The identity of a claims file and the date of its margins, as verdicts.json has them.

    `first_run` is when the first judged run was started (ISO 8601 with an offset), None without
    one. `margins_younger` is None where the margins have no date or there is no run.
    """
    path, document = claims_file(name), load_claims(name)
    since = _since(path, fingerprint(decisive(document)))
    younger = None
    if first_run is not None and since is not None:
        younger = datetime.fromisoformat(since) > datetime.fromisoformat(first_run)
    return {
        "name": path.stem,
        "title": document["paper"]["title"],
        "arxiv": document["paper"]["arxiv"],
        "sha256": sha256_of(path),
        "margins_sha256": fingerprint(decisive(document)),
        "margins_since": since,
        "first_run": first_run,
        "margins_younger": younger,
    }


def _since(path: Path, current: str) -> str | None:
    """The date of the oldest commit in a row, from the newest back, that decides as `current`."""
    since = None
    for line in _git(path, "log", "--format=%H %cI", "--", path.name).splitlines():
        commit, date = line.split()
        text = _git(path, "show", f"{commit}:./{path.name}")
        if fingerprint(_decisive_of(text)) != current:
            break
        since = date
    return since


def _decisive_of(text: str) -> dict[str, Any] | None:
    """`decisive` of a file as some commit had it; None for one that is no claims file of today."""
    try:
        return decisive(parse_yaml(text))
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return None


def _git(path: Path, *arguments: str) -> str:
    """What git prints in the folder of `path`; nothing outside a checkout or without git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(path.parent), *arguments], capture_output=True, text=True
        )
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""
