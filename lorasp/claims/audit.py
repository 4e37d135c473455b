"""The audit: what arithmetic, the public models' shapes and simulated steps say, untrained.

    lorasp audit
    lorasp audit --claims lora_2021 my_paper.yaml --json

A claim names its check and the check's arguments: `check: {name: mean, of: "table1.base.*"}`.
"""

import inspect
import textwrap
import types
import typing
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorasp.claims import (
    Claim,
    Document,
    arithmetic,
    budgets,
    claims_file,
    counts,
    equations,
    labels,
    load_claims,
    with_readings,
)
from lorasp.claims.applied import trained
from lorasp.claims.printed import Outcome
from lorasp.claims.simulated import simulated
from lorasp.errors import WorkError
from lorasp.methods import table
from lorasp.results import provenance, sha256_of, write_json

CHECKS: dict[str, Callable[..., Outcome]] = {
    "mean": arithmetic.mean,
    "sum": arithmetic.total,
    "share": arithmetic.share,
    "equal": arithmetic.equal,
    "quotes": arithmetic.quotes,
    "order": arithmetic.order,
    "attainable": arithmetic.attainable,
    "parameters": counts.parameters,
    "halved": budgets.halved,
    "one_setting": budgets.one_setting,
    "states": budgets.states,
    "trained": trained,
    "simulated": simulated,
    "shapes": equations.shapes,
    "same": equations.same,
    "agree": labels.agree,
    "pairs": labels.pairs,
    "present": labels.present,
    "swept": labels.swept,
    "row_labels": labels.row_labels,
    "nearest": labels.nearest,
    "one_column": labels.one_column,
    "published": labels.published,
}
Finding = dict[str, Any]


def audit(names: list[str], check: str | None = None) -> list[Finding]:
    """Run every check of the named papers, or the one named, in the order of their files.

    Raises WorkError naming file and claim where a check or an argument of it is wrong.
    """
    return [finding for name in names for finding in _audit_one(name, check)]


def _audit_one(name: str, check: str | None) -> list[Finding]:
    document, path = load_claims(name), claims_file(name)
    findings = []
    for claim in document["claims"]:
        if "check" not in claim or check not in (None, claim["check"]["name"]):
            continue
        try:
            outcome = _run(document, claim)
        except WorkError as error:
            raise WorkError(f"{path}: claim {claim['id']}: {error}") from error
        findings.append(
            {
                "paper": name,
                **{key: claim[key] for key in ("id", "kind", "where", "printed")},
                "found": _read(outcome, claim),
                "verdict": outcome.verdict,
                "evidence": outcome.evidence,
                "rows": outcome.rows,
            }
        )
    return findings


def _read(outcome: Outcome, claim: Claim) -> str:
    """What was found; of a method that is in part our reading of its paper, with that."""
    if outcome.verdict == "not run":
        return outcome.found
    return with_readings(outcome.found, claim, table())


def _run(document: Document, claim: Claim) -> Outcome:
    arguments = dict(claim["check"])
    name = arguments.pop("name")
    if name not in CHECKS:
        raise WorkError(f"check.name is {name!r}; allowed are {', '.join(sorted(CHECKS))}")
    check = CHECKS[name]
    hints = typing.get_type_hints(check)
    parameters = inspect.signature(check).parameters.values()
    allowed = {one.name: one for one in parameters if one.kind is one.KEYWORD_ONLY}
    for key, value in arguments.items():
        if key not in allowed:
            names = ", ".join(allowed) or "none"
            raise WorkError(f"check {name} has no argument {key!r}; allowed are {names}")
        if not _is_a(value, hints[key]):
            raise WorkError(f"check {name}: {key} is {value!r}; allowed is {_words(hints[key])}")
    for key, one in allowed.items():
        if one.default is one.empty and key not in arguments:
            raise WorkError(f"check {name} needs {key}")
    return check(document, claim, **arguments)


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value from YAML is of an annotated type: scalars, lists, mappings and unions."""
    inner = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_is_a(value, one) for one in inner)
    match typing.get_origin(hint):
        case None if hint is Any:
            return True
        case None if isinstance(value, bool):
            return hint is bool  # which Python counts among the integers
        case None:
            return isinstance(value, (int, float) if hint is float else hint)
        case origin if origin is list:
            return isinstance(value, list) and all(_is_a(one, inner[0]) for one in value)
        case _:
            return isinstance(value, dict) and all(
                _is_a(key, inner[0]) and _is_a(one, inner[1]) for key, one in value.items()
            )


def _words(hint: Any) -> str:
    return str(hint if typing.get_origin(hint) else getattr(hint, "__name__", hint))


def write_audit(path: Path, names: list[str], findings: list[Finding]) -> None:
    """Write `results/audit.json`, with the hash of every claims file."""
    papers = {name: sha256_of(claims_file(name)) for name in names}
    content = {"provenance": provenance(), "papers": papers, "findings": findings}
    write_json(path, content, "audit")


def as_text(findings: list[Finding]) -> str:
    """The findings for a terminal: verdict, id and place, then what was found and why."""
    lines = []
    for finding in findings:
        lines.append(f"{finding['verdict']:15} {finding['id']} ({finding['where']})")
        for sentence in (f"{finding['printed']}: {finding['found']}", *finding["evidence"]):
            lines += textwrap.wrap(
                sentence, 100, initial_indent=" " * 16, subsequent_indent=" " * 18
            )
    verdicts = Counter(finding["verdict"] for finding in findings)
    told = ", ".join(f"{number} {verdict}" for verdict, number in verdicts.most_common())
    return "\n".join([*lines, "", f"{len(findings)} claims audited: {told}"])
