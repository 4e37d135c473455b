"""A verdict in a few characters: its sign, its class in the style sheet, its place in a table."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from lorasp.claims import PAPER, load_claims
from lorasp.config import Config, resolve_task
from lorasp.report.collect import anchor

Verdict = dict[str, Any]
Badge = dict[str, str]
# In the order of what a reader wants to know first. The sign tells them apart without colour.
SIGNS = {
    "reproduced": "✓",
    "not reproduced": "✗",
    "inconclusive": "?",
    "inconsistent": "≠",
    "not comparable": "∅",
    "not run": "–",  # noqa: RUF001
}
TESTS = {"equivalent": "as", "noninferior": "no worse than", "superior": "better than"}
Place = tuple[str, str | None, str | None, str]  # model, task, metric, method


@dataclasses.dataclass(frozen=True)
class Badges:
    """Badges by place: `own` by the id of the claim that prints a number, `relations` by the cell.

    A relation over several tasks has no task and no metric; it stands beside its method.
    """

    own: dict[str, Badge] = dataclasses.field(default_factory=dict)
    relations: dict[Place, list[Badge]] = dataclasses.field(default_factory=dict)

    def claim(self, name: str) -> list[Badge]:
        return [self.own[name]] if name in self.own else []


def badge(verdict: Verdict, target: str, against: str = "") -> Badge:
    """The badge of a verdict; `target` is the place in the page that it leads to."""
    name = verdict["verdict"]
    return {"verdict": name, "sign": SIGNS[name], "class": anchor(name), "target": target} | {
        "against": against
    }


def words(badges: list[Badge]) -> str:
    """Badges as text alone."""
    return (
        "; ".join(
            entry["verdict"] + (f" ({entry['against']})" if entry["against"] else "")
            for entry in badges
        )
        or "\N{MIDDLE DOT}"
    )


def documents(config: Config) -> dict[str, dict[str, Any]]:
    """The claims files of a configuration by the name that verdicts have for them."""
    return {Path(name).stem: load_claims(name) for name in config["claims"]}


def targets(verdicts: list[Verdict]) -> dict[tuple[str, str], str]:
    """The anchor of every claim: claim-<id>, with the paper's name where two papers share an id."""
    shared = Counter(verdict["id"] for verdict in verdicts)
    return {
        (verdict["paper"], verdict["id"]): f"claim-{verdict['id']}"
        if shared[verdict["id"]] == 1
        else f"claim-{anchor(verdict['paper'])}-{verdict['id']}"
        for verdict in verdicts
    }


def by_place(config: Config, verdicts: list[Verdict]) -> Badges:
    """The badges of the paper's tables: of its printed numbers, and of relations on one model.

    What was not run has none: the cells say so themselves.
    """
    claims = {claim["id"]: claim for claim in load_claims()["claims"]}
    places = targets(verdicts)
    own: dict[str, Badge] = {}
    relations: dict[Place, list[Badge]] = {}
    for verdict in verdicts:
        if verdict["paper"] != PAPER or verdict["verdict"] == "not run":
            continue
        claim, target = claims[verdict["id"]], places[PAPER, verdict["id"]]
        if claim["kind"] in ("score", "count"):
            against = "as printed" if claim["kind"] == "score" else ""
            own[verdict["id"]] = badge(verdict, target, against)
        cells = {(group["model"], group["task"]) for group in verdict.get("groups", [])}
        models = {model for model, _ in cells}
        if claim["kind"] == "relation" and len(models) == 1:
            task = next(task for _, task in cells) if len(cells) == 1 else None
            metric = claim.get("metric") or (_headline(config, task) if task else None)
            against = f"{TESTS[claim['test']]} {config['methods'][claim['right']]['label']}"
            place = (models.pop(), task, metric, claim["left"])
            found = badge(verdict, target, against + ("" if task else ", on average"))
            relations.setdefault(place, []).append(found)
    return Badges(own, relations)


def _headline(config: Config, task: str) -> str:
    return str(resolve_task(config, task)["headline"])
