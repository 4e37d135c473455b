"""The suite beside what people use today: what `lorasp bench` measured, as words and tables."""

from pathlib import Path
from typing import Any

import pandas as pd

from lorasp.bench import BENCHES
from lorasp.bench.measure import GOALS
from lorasp.report.tables import TIMES
from lorasp.results import read_json, read_yaml

FOLDER = Path("reports/bench")
COMMAND = f"lorasp bench all --out {FOLDER}"
MET, MISSED, VOID, UNMEASURED = "met", "not met", "means nothing", "not measured"
HOLDS, BROKEN = "holds", "broken"
SIGNS = {  # and the class of the style sheet, by what the State column says
    MET: ("✓", "reproduced"),
    MISSED: ("✗", "not-reproduced"),
    VOID: ("≠", "inconsistent"),
    UNMEASURED: ("–", "not-run"),  # noqa: RUF001
    HOLDS: ("✓", "reproduced"),
    BROKEN: ("≠", "inconsistent"),
}
RATE = "a second"  # ends the unit of what is better when there is more of it

Answer = dict[str, Any]


def read_benches() -> list[Answer]:
    """The answers in reports/bench, in the order of the benches; WorkError for a damaged one."""
    paths = [FOLDER / f"{name}.json" for name in BENCHES]
    return [read_json(path, "bench") for path in paths if path.exists()]


def headline(goals: pd.DataFrame) -> str:
    """How many goals are met, and how many are not."""
    counts = goals["State"].value_counts()
    others = [f"{counts[state]} {state}" for state in (MISSED, VOID, UNMEASURED) if state in counts]
    met = f"{counts.get(MET, 0)} of {len(goals)} goals are met"
    return f"{'; '.join([met, *others])}."


def origin(answers: list[Answer]) -> str:
    """Where and when all of it was measured, in a sentence."""
    machines = sorted({_machine(answer) for answer in answers})
    commits = sorted({_commit(answer) for answer in answers})
    days = sorted(answer["finished"][:10] for answer in answers)
    when = f"on {days[0]}" if days[0] == days[-1] else f"between {days[0]} and {days[-1]}"
    return f"Measured {when} on {'; '.join(machines)}, at commit {', '.join(commits)}."


def _machine(answer: Answer) -> str:
    machine = answer["provenance"]["machine"]
    return f"{machine['cpu']} ({machine['cores']} cores)"


def _commit(answer: Answer) -> str:
    git = answer["provenance"]["git"]
    return (git["commit"] or "unknown")[:10] + (" with changes" if git["dirty"] else "")


def goals_frame(answers: list[Answer]) -> pd.DataFrame:
    """Each goal and what was measured of it; what was not measured comes last."""
    rows = []
    for answer in answers:
        void = any(not check["met"] for check in answer["checks"])
        for goal in answer["goals"]:
            state = VOID if void else MET if goal["met"] else MISSED
            rows.append(_goal(goal, f"{goal['median']:.4g}", spread(goal), state))
    measured = {goal["goal"] for answer in answers for goal in answer["goals"]}
    for name, goal in read_yaml(GOALS).items():
        if name not in measured:
            rows.append(_goal(goal, "", "", UNMEASURED))
    return pd.DataFrame(rows)


def _goal(goal: dict[str, Any], median: str, quartiles: str, state: str) -> dict[str, str]:
    bound = f"≤ {goal['at_most']:g}" if "at_most" in goal else f"≥ {goal['at_least']:g}"
    return {
        "Bench": goal["bench"],
        "State": state,
        "Goal": goal["what"],
        "Median": median,
        "Quartiles": quartiles,
        "Wanted": bound,
    }


def checks_frame(answers: list[Answer]) -> pd.DataFrame:
    """What had to be equal for a time to mean anything."""
    return pd.DataFrame(
        {
            "Bench": answer["bench"],
            "State": HOLDS if check["met"] else BROKEN,
            "Compared": check["what"],
            "Found": check["found"],
            "Allowed": check["allowed"],
        }
        for answer in answers
        for check in answer["checks"]
    )


def relative(case: dict[str, Any]) -> list[dict[str, Any]]:
    """Each contestant's cost over the peer's median: `ratio`, `low` and `high` (the quartiles).

    The peer comes first, at 1, then the cheapest. A rate costs its inverse: twice the examples a
    second are half of the time. Empty where the peer costs nothing.
    """

    def cost(value: float) -> float:
        return 1 / value if case["unit"].endswith(RATE) else value

    medians = {name: cost(values["median"]) for name, values in case["values"].items()}
    peer = case.get("peer") or max(medians, key=lambda name: medians[name])
    if not medians[peer]:
        return []
    rows = []
    for name, values in case["values"].items():
        low, high = sorted(cost(values[key]) / medians[peer] for key in ("q1", "q3"))
        kind = {"contestant": name, "peer": name == peer, "ratio": medians[name] / medians[peer]}
        rows.append(kind | {"low": low, "high": high})
    return sorted(rows, key=lambda row: (not row["peer"], row["ratio"]))


def cases_frame(answers: list[Answer]) -> pd.DataFrame:
    """What was measured in its own unit, every contestant of every case."""
    rows = []
    for answer in answers:
        for case in answer["cases"]:
            ratios = {row["contestant"]: row["ratio"] for row in relative(case)}
            for name in ratios or case["values"]:
                values = case["values"][name]
                rows.append(
                    {
                        "Bench": answer["bench"],
                        "Case": case["case"],
                        "Contestant": name,
                        "Median": number(values["median"]),
                        "Quartiles": spread(values),
                        "Unit": case["unit"],
                        "Over the peer": f"{TIMES}{ratios[name]:.2f}" if ratios else "",
                    }
                )
    return pd.DataFrame(rows)


def benches_frame(answers: list[Answer]) -> pd.DataFrame:
    """What each bench has run, where, when and under which load."""
    return pd.DataFrame(
        {
            "Bench": answer["bench"],
            "What was run": answer["what"],
            "Machine": _machine(answer),
            "Commit": _commit(answer),
            "Measured": answer["finished"].replace("T", " ").replace("+00:00", " UTC"),
            "Load before": f"{answer['load']:.1f}",
        }
        for answer in answers
    )


def number(value: float) -> str:
    """Three digits, or all of a large one."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: dict[str, float]) -> str:
    """The quartiles as 'q1 to q3'; empty for what was counted and has none."""
    if values["q1"] == values["q3"]:
        return ""
    return f"{number(values['q1'])} to {number(values['q3'])}"


def section(answers: list[Answer]) -> dict[str, Any]:
    """What the templates show of the benches; without an answer only the command to run."""
    signs = {
        state: {"verdict": state, "sign": sign, "class": name, "target": "", "against": ""}
        for state, (sign, name) in SIGNS.items()
    }
    shown: dict[str, Any] = {"command": COMMAND, "folder": str(FOLDER), "signs": signs}
    if not answers:
        return shown | {"tables": []}
    goals = goals_frame(answers)
    made = [
        ("goals", "Goals", "Ratios are taken round by round of one run; the median decides.",
         ("Bench", "Goal"), False, goals),
        ("checks", "What had to be equal", "Without it a time means nothing.",
         ("Bench", "Compared", "Found", "Allowed"), False, checks_frame(answers)),
        ("cases", "Every figure in its own unit", "", ("Bench", "Case", "Contestant", "Unit"), True,
         cases_frame(answers)),
        ("benches", "What was run, where and when", "",
         ("Bench", "What was run", "Machine", "Commit", "Measured"), True, benches_frame(answers)),
    ]  # fmt: skip
    tables = [
        {"name": f"speed-{name}", "title": title, "note": note, "words": words}
        | {"folded": folded, "frame": frame}
        for name, title, note, words, folded, frame in made
        if not frame.empty
    ]
    return shown | {"headline": headline(goals), "origin": origin(answers), "tables": tables}
