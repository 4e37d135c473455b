"""What the templates show of the verdicts: the answer, the claims, the audit, and their tables."""

from collections import Counter
from typing import Any

import pandas as pd

from lorasp.claims import PAPER
from lorasp.claims.margins import history
from lorasp.config import Config
from lorasp.report.badges import SIGNS, Verdict, badge, documents, targets
from lorasp.report.collect import Results, anchor

MINUS = "\N{MINUS SIGN}"
PRINTED = ("Claim", "Printed", "Verdict", "Estimate", "n", "Because", "Found")  # in LaTeX
TEST_NAMES = {
    "equivalent": "equivalence (two one-sided tests)",
    "noninferior": "non-inferiority",
    "superior": "superiority",
    "less": "ratio below the margin",
    "at_most": "ratio up to the margin above 1",
    "equal": "ratio within the margin of 1",
}
RATIOS = ("less", "at_most", "equal")  # the tests of resources
RULE = (
    "picked by rule, the first four that there are: the score or relation not reproduced with the "
    "smallest p, the one reproduced with the smallest p, the resource claim that fails by most or "
    "holds by most, the first contradiction of the audit, the undecided claim that the fewest "
    "seeds would settle"
)


def papers(config: Config, results: Results, verdicts: list[Verdict]) -> list[dict[str, Any]]:
    """The claims files as verdicts.json has them: identity, date of the margins, counts."""
    made = (results.runs, results.profiles)
    started = [date for frame in made if "started" in frame for date in frame["started"].dropna()]
    first = min(started, default=None)
    entries = []
    for name, path in zip(documents(config), config["claims"], strict=True):
        counts = Counter(entry["verdict"] for entry in verdicts if entry["paper"] == name)
        entries.append(history(path, first) | {"counts": {sign: counts[sign] for sign in SIGNS}})
    return entries


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign, as it is typeset."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def difference(effect: dict[str, Any]) -> str:
    """'−0.3 [−1.1, +0.5], 5 pairs' of two methods or recipes, as open_settings has it."""
    shown = estimate({"name": "", **effect})
    return f"{shown}, {effect['n']} {'pair' if effect['n'] == 1 else 'pairs'}"


def estimate(test: dict[str, Any] | None) -> str:
    """'−2.9 [−4.1, −1.7]' in points, or a ratio as '×0.72'; empty where nothing was estimated."""
    if test is None or test["estimate"] is None:
        return ""
    if test["name"] in RATIOS:
        return f"×{test['estimate']:.{2 if test['name'] == 'less' else 3}f}"
    text = signed(test["estimate"])
    if test["interval"] is None:
        return text
    low, high = (signed(end) for end in test["interval"])
    return f"{text} [{low}, {high}]"


def seeds(test: dict[str, Any] | None) -> str:
    """'5', or '4 of 5' where a planned seed is missing."""
    if test is None:
        return ""
    n, planned = test["n"], test["planned"]
    return str(n) if n == planned else f"{n} of {planned}"


def view(config: Config, verdicts: list[Verdict]) -> list[dict[str, Any]]:
    """Every verdict with what a template needs beside it; of each paper the judged claims first."""
    claims = _claims(config)
    places = targets(verdicts)
    order = list(SIGNS)
    names = list(documents(config))
    verdicts = sorted(verdicts, key=lambda v: (names.index(v["paper"]), v["verdict"] == "not run"))
    return [
        verdict
        | {
            "target": places[verdict["paper"], verdict["id"]],
            "title": _title(claims[verdict["paper"], verdict["id"]]),
            "badge": badge(verdict, places[verdict["paper"], verdict["id"]]),
            "order": order.index(verdict["verdict"]),
            "estimate": estimate(verdict.get("test")),
            "seeds": seeds(verdict.get("test")),
            "test_lines": _lines(verdict.get("test")),
            "others": [
                other | {"badge": badge(other, ""), "estimate": estimate(other.get("test"))}
                for other in verdict.get("others", [])
            ],
            "runs": [
                {"text": ", ".join(group.values()), "anchor": anchor("runs", *group.values())}
                for group in _groups(verdict)
            ],
            "margin": claims[verdict["paper"], verdict["id"]].get("margin"),
            "note": claims[verdict["paper"], verdict["id"]].get("note"),
            "audited": "check" in claims[verdict["paper"], verdict["id"]],
            "simulated": _is_simulated(claims[verdict["paper"], verdict["id"]]),
            "evidence": verdict.get("evidence", []),
            "rows": _cells(verdict.get("rows", [])),
        }
        for verdict in verdicts
    ]


def _claims(config: Config) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (paper, claim["id"]): claim
        for paper, document in documents(config).items()
        for claim in document["claims"]
    }


def _is_simulated(claim: dict[str, Any]) -> bool:
    return bool(claim.get("check", {}).get("name") == "simulated")


def _title(claim: dict[str, Any]) -> str:
    """What is printed; of a number in a table with its row and column."""
    place = f"{claim['row']}, {claim['column']}: " if "row" in claim else ""
    return place + str(claim["printed"])


def _groups(verdict: Verdict) -> list[dict[str, str]]:
    names = ("model", "task", "method", "recipe")
    return [{name: group[name] for name in names} for group in verdict.get("groups", [])]


def _lines(test: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The numbers of a test as terms and values; those that it has not are left out."""
    if test is None:
        return []
    level = "" if test["level"] is None else f", {test['level']:.0%}".replace("%", " %")
    bootstrap = test["bootstrap"] and ", ".join(signed(end, 2) for end in test["bootstrap"])
    lines: list[tuple[str, Any]] = [
        ("test", TEST_NAMES.get(test["name"], test["name"])),
        ("margin", None if test["margin"] is None else f"{test['margin']:g}"),
        (f"estimate{level} interval", estimate(test)),
        (f"bootstrap{level} interval", bootstrap),
        ("p for it", _p(test["p"], test["p_adjusted"])),
        ("p against it", _p(test.get("p_against"), test.get("p_against_adjusted"))),
        ("seeds that would settle it", test["seeds_needed"]),
    ]
    return [(term, str(value)) for term, value in lines if value not in (None, "")]


def _p(value: float | None, adjusted: float | None) -> str | None:
    """A p-value, and after Holm's correction."""
    if value is None:
        return None
    shown = ["< 0.001" if p < 0.001 else f"{p:.3f}" for p in (value, adjusted) if p is not None]
    return ", after Holm ".join(shown)


def _cells(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Flat records as a heading and rows of text."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    headings = [name.replace("_", " ") for name in names]
    return {"names": headings, "rows": [[_text(row.get(name)) for name in names] for row in rows]}


def _text(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.6g}"
        case list():
            return ", ".join(str(item) for item in value)
    return str(value)


def findings(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most four telling verdicts of the paper, picked as RULE says."""
    mine = [entry for entry in entries if entry["paper"] == PAPER]
    tested = [e for e in mine if e["kind"] in ("score", "relation") and e.get("test")]
    costs = [e for e in mine if e["kind"] == "resource" and e.get("test")]
    fail = [e for e in costs if e["verdict"] == "not reproduced"]
    hold = [e for e in costs if e["verdict"] == "reproduced"]
    contradictions = [e for e in mine if e["verdict"] == "inconsistent"]
    contradictions.sort(key=lambda entry: entry["kind"] != "arithmetic")  # the plainest first
    open_ones = [e for e in tested if e["verdict"] == "inconclusive" and e["test"]["seeds_needed"]]
    picked = [
        _least([e for e in tested if e["verdict"] == "not reproduced"], "p_against_adjusted"),
        _least([e for e in tested if e["verdict"] == "reproduced"], "p_adjusted"),
        _least(fail, "estimate", -1.0) or _least(hold, "estimate"),
        contradictions[0] if contradictions else None,
        _least(open_ones, "seeds_needed"),
    ]
    return [entry for entry in picked if entry][:4]


def _least(entries: list[dict[str, Any]], key: str, sign: float = 1.0) -> dict[str, Any] | None:
    known = [entry for entry in entries if entry["test"].get(key) is not None]
    return min(known, key=lambda entry: sign * entry["test"][key], default=None)


def tally(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many claims of the paper have each verdict: {verdict, n, share, badge}."""
    mine = [entry["verdict"] for entry in entries if entry["paper"] == PAPER]
    counts = Counter(mine)
    return [
        {"verdict": name, "n": counts[name], "badge": badge({"verdict": name}, "claims")}
        for name in SIGNS
    ]


def basis(entries: list[dict[str, Any]]) -> list[str]:
    """What decided the claims of the paper: runs, profiles, simulated steps, the audit alone."""
    kinds = {
        "trained runs": Counter[str](),
        "measured costs": Counter[str](),
        "simulated steps": Counter[str](),
        "the audit alone": Counter[str](),
    }
    for entry in entries:
        if entry["paper"] == PAPER and ("test" in entry or entry["audited"]):
            measured = "test" in entry and entry["test"]["name"] in RATIOS
            kind = "the audit alone" if entry["audited"] else "trained runs"
            kind = "simulated steps" if entry["simulated"] else kind
            kinds["measured costs" if measured else kind][entry["verdict"]] += 1
    return [
        f"{kind} {', '.join(f'{counts[name]} {name}' for name in SIGNS if counts[name]) or 'none'}"
        for kind, counts in kinds.items()
    ]


def audited(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the audit computed, contradictions first."""
    order = ["inconsistent", "not reproduced", "not comparable", "inconclusive", "reproduced"]
    found = [entry for entry in entries if entry["audited"] and entry["verdict"] in order]
    return sorted(found, key=lambda entry: order.index(entry["verdict"]))


def claims_frame(entries: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a claim, as text."""
    names = ("Paper", "Claim", "Where", "Kind", "Printed", "Verdict", "Because", "Estimate", "n")
    rows = [
        (e["paper"], e["id"], e["where"], e["kind"], e["printed"], e["verdict"], e["because"],
         e["estimate"], e["seeds"])
        for e in entries
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=names)


def audit_frame(entries: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a finding of the audit, as text, with its evidence."""
    names = ("Paper", "Claim", "Where", "Kind", "Printed", "Verdict", "Found", "Evidence")
    rows = [
        (e["paper"], e["id"], e["where"], e["kind"], e["printed"], e["verdict"], e["because"],
         " ".join(e["evidence"]))
        for e in audited(entries)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=names)
