"""Two result folders side by side: which verdicts changed, and why.

lorasp report --config config/mini.yaml --compare results/mini /elsewhere/results/mini
"""

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd

from lorasp.config import Config
from lorasp.errors import UsageError
from lorasp.report.claims_view import estimate
from lorasp.report.collect import DIVERGED, DONE, RUN, collect
from lorasp.report.formats import write
from lorasp.report.judged import judged
from lorasp.report.page import environment
from lorasp.results import provenance, write_json

Verdict = dict[str, Any]
MAPPINGS = {"versions": "version of", "data": "data of"}


@dataclasses.dataclass(frozen=True)
class Side:
    """One result folder: its verdicts by (paper, id), and its runs that count, one row a seed."""

    folder: Path
    verdicts: dict[tuple[str, str], Verdict]
    runs: pd.DataFrame


def write_comparison(config: Config, folders: tuple[Path, Path], out: Path | None = None) -> Path:
    """Judge both folders with one configuration; write compare.html, .md and .json to `out`.

    `out` is reports/<scale>/compare by default. Returns the path of compare.html. Raises UsageError
    where a folder holds no run of the configuration.
    """
    out = out or Path("reports", config["scale"], "compare")
    sides = (_side(config, folders[0]), _side(config, folders[1]))
    document = {"scale": config["scale"], "provenance": provenance(), **compare(*sides)}
    write_json(out / "compare.json", document, "compare")
    templates = environment()
    templates.filters["side"] = _told_side
    for name in ("compare.md", "compare.html"):
        text = templates.get_template(f"{name}.j2").render({"config": config, **document})
        write(out / name, text)
    return out / "compare.html"


def _side(config: Config, folder: Path) -> Side:
    results = collect(config, folder)
    runs = results.runs[results.runs["status"].isin((DONE, DIVERGED))]
    if runs.empty:
        raise UsageError(
            f"--compare {folder}: no run of scale {config['scale']} there; name a folder such as "
            f"results/{config['scale']}, which holds <model>/<task>/<method>/<recipe>/seed-<n>/"
        )
    verdicts = {(entry["paper"], entry["id"]): entry for entry in judged(config, results)}
    return Side(folder, verdicts, runs)


def compare(first: Side, second: Side) -> dict[str, Any]:
    """Every claim that runs can judge, as judged on either side, and what changed it.

    Returns {folders, origins, claims: [{paper, id, printed, changed, first, second, why}]}, the
    changed claims first.
    """
    both = _together(first.runs, second.runs)
    claims = []
    for key, before in first.verdicts.items():
        after = second.verdicts[key]
        if "test" in before or "test" in after:
            changed = before["verdict"] != after["verdict"]
            claims.append(
                {
                    **{name: before[name] for name in ("paper", "id", "where", "printed")},
                    "changed": changed,
                    "first": _short(before),
                    "second": _short(after),
                    "why": why(first, second, before, after) if changed else [],
                }
            )
    return {
        "folders": [str(first.folder), str(second.folder)],
        "origins": origins(both[both["_merge"] == "both"]),
        "claims": sorted(claims, key=lambda claim: not claim["changed"]),
    }


def _short(verdict: Verdict) -> dict[str, Any]:
    test = verdict.get("test") or {}
    kept = {key: test.get(key) for key in ("n", "estimate", "interval")}
    return {"verdict": verdict["verdict"], "because": verdict["because"], **kept}


def _told_side(side: dict[str, Any]) -> str:
    """'inconclusive, −0.3 [−1.1, +0.5], 5 seeds'."""
    number = estimate({"name": "", **side})
    seeds = f"{side['n']} {'seed' if side['n'] == 1 else 'seeds'}" if side["n"] else ""
    return ", ".join(part for part in (side["verdict"], number, seeds) if part)


def why(first: Side, second: Side, before: Verdict, after: Verdict) -> list[str]:
    """What differs between the runs behind a claim, and where they come from, in sentences."""
    both = _together(_behind(first, before, after), _behind(second, before, after))
    reasons = []
    for side, place in (("left_only", first.folder), ("right_only", second.folder)):
        alone = both[both["_merge"] == side]
        if len(alone):
            seeds = ", ".join(str(seed) for seed in sorted(set(alone["seed"])))
            reasons.append(f"{len(alone)} runs are in {place} alone (seeds {seeds})")
    shared = both[both["_merge"] == "both"]
    gaps = (shared["value"] - shared["value_2"]).abs()
    undefined = shared["value"].isna() != shared["value_2"].isna()
    if undefined.any():
        reasons.append(f"{int(undefined.sum())} scores are undefined on one side alone")
    if gaps.max() > 0:
        reasons.append(
            f"{int((gaps > 0).sum())} of {len(shared)} runs that both have differ in their score, "
            f"by up to {gaps.max():.2f} points"
        )
    if reasons:
        return reasons + origins(shared)
    if "family" in before:
        return [
            "its own runs and headline scores agree; other claims of its family "
            f"({before['family']}) changed, and with them the correction for multiplicity"
        ]
    return [
        "its own runs and headline scores agree; other metrics or the profiles behind it differ"
    ]


def _together(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """The runs of both sides, one row for each name; `_merge` says which side has it."""
    keys = [*RUN, "seed"]
    return first.merge(second, on=keys, how="outer", suffixes=("", "_2"), indicator=True)


def _behind(side: Side, *verdicts: Verdict) -> pd.DataFrame:
    """The runs of the groups that the verdicts name."""
    groups = {
        tuple(group[name] for name in RUN)
        for verdict in verdicts
        for group in verdict.get("groups", [])
    }
    return side.runs[[key in groups for key in side.runs[RUN].itertuples(index=False, name=None)]]


def origins(shared: pd.DataFrame) -> list[str]:
    """How runs that both sides have differ in code, machine, configuration, packages and data."""
    found = []
    for column in ("commit", "machine"):
        one, other = ({str(value) for value in shared[name]} for name in (column, f"{column}_2"))
        if one != other:
            found.append(f"{column}: {_told(one)} and {_told(other)}")
    if changed := int((shared["config"] != shared["config_2"]).sum()):
        found.append(f"configuration: differs in {changed} of {len(shared)} runs")
    for column, name in MAPPINGS.items():
        one_by, other_by = _gathered(shared[column]), _gathered(shared[f"{column}_2"])
        for key in sorted(one_by.keys() & other_by.keys()):
            if one_by[key] != other_by[key]:
                found.append(f"{name} {key}: {_told(one_by[key])} and {_told(other_by[key])}")
    return found


def _told(values: set[str]) -> str:
    return ", ".join(sorted(values)) if len(values) <= 3 else f"{len(values)} different"


def _gathered(mappings: pd.Series) -> dict[str, set[str]]:
    gathered: dict[str, set[str]] = {}
    for mapping in mappings.dropna():
        for key, value in mapping.items():
            gathered.setdefault(key, set()).add(str(value))
    return gathered
