"""The papers as data: every claim, with its place, what it measures and how it is judged."""

import functools
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from lorasp.errors import UsageError, WorkError
from lorasp.results import first_error, read_yaml

FOLDER = Path(__file__).parent
PAPER = "lora_sp_2024"  # the paper that the suite reproduces

Document = dict[str, Any]
Claim = dict[str, Any]


def shipped() -> list[str]:
    """The names of the claims files that come with lorasp."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def claims_file(name: str) -> Path:
    """The file of a shipped paper by its name, or any other by its path (it ends in .yaml).

    Raises UsageError with the names that there are.
    """
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(
            f"there is no claims file {path}; shipped are {', '.join(shipped())}; "
            "any other is named by its path, and the name of the file ends in .yaml"
        )
    return path


@functools.cache
def load_claims(name: str = PAPER) -> Document:
    """The claims of a paper: {paper, margins, families, tables, claims: [{id, kind, printed, …}]}.

    Raises WorkError where the file cannot be read, breaks its schema, uses an id twice, or names a
    margin, family or reference that it does not define.
    """
    path = claims_file(name)
    document = {"references": {}, "margins": {}, "families": {}, **read_yaml(path)}
    document["tables"] = {
        str(number): table for number, table in document.get("tables", {}).items()
    }
    if problem := first_error(document, "claims"):
        raise WorkError(f"{path}: {problem}")
    ids = [claim["id"] for claim in document["claims"]]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise WorkError(f"{path}: claims.id must be unique; more than once: {', '.join(twice)}")
    for claim in document["claims"]:
        if "table" in claim:
            _defined(path, claim, "tables", str(claim["table"]), document)
            claim.setdefault("where", document["tables"][str(claim["table"])]["where"])
        for key, section in (("margin", "margins"), ("family", "families")):
            if key in claim:
                _defined(path, claim, section, claim[key], document)
        if "independent" in claim:
            _defined(path, claim, "references", claim["independent"]["source"], document)
    return document


def _defined(path: Path, claim: Claim, section: str, name: str, document: Document) -> None:
    if name not in document[section]:
        raise WorkError(
            f"{path}: claim {claim['id']} names {name!r}, which is not under {section}; "
            f"there are {', '.join(document[section]) or 'none'}"
        )


def find(document: Document, pattern: str, kind: str | None = None) -> list[Claim]:
    """The claims whose id matches a pattern such as `table1.roberta-base.ft.*`, of one kind or all.

    Raises WorkError where there is none.
    """
    found = [
        claim
        for claim in document["claims"]
        if fnmatch(claim["id"], pattern) and kind in (None, claim["kind"])
    ]
    if not found:
        raise WorkError(f"no claim of {document['paper']['title']!r} has an id like {pattern}")
    return found


def with_readings(text: str, claim: dict[str, Any], methods: dict[str, dict[str, Any]]) -> str:
    """A sentence on a claim about a method that is in part our reading of its paper, with that."""
    sides = [claim.get("check", claim).get(side) for side in ("left", "right")]
    names = [side["method"] if isinstance(side, dict) else side for side in sides]
    entries = [methods.get(name, {}) for name in names if name]
    said = [
        f"{entry['label']} is an interpretation: {entry['interpretation']}"
        for entry in entries
        if "interpretation" in entry
    ]
    more = [sentence for sentence in said if sentence not in text]
    return " ".join([f"{text.rstrip('.')}.", *more]) if more else text
