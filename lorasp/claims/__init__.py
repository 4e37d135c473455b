"""The paper as data: every printed number, with its place and what it measures."""

import functools
from pathlib import Path
from typing import Any

from lorasp.errors import WorkError
from lorasp.results import first_error, read_yaml

PAPER = Path(__file__).parent / "lora_sp_2024.yaml"


@functools.cache
def load_claims(path: Path = PAPER) -> dict[str, Any]:
    """The claims of a paper: {paper, tables: {number: …}, claims: [{id, kind, printed, value, …}]}.

    Raises WorkError where the file cannot be read, breaks its schema, or uses an id twice.
    """
    document = read_yaml(path)
    document["tables"] = {
        str(number): table for number, table in document.get("tables", {}).items()
    }
    if problem := first_error(document, "claims"):
        raise WorkError(f"{path}: {problem}")
    ids = [claim["id"] for claim in document["claims"]]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise WorkError(f"{path}: claims.id must be unique; more than once: {', '.join(twice)}")
    return document
