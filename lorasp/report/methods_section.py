"""All methods side by side, as the page shows them: advice, ranking, costs, equal cost, sweeps."""

from typing import Any

import pandas as pd

from lorasp.config import Config
from lorasp.report.advice import NO_SCORE_COUNTS, advice
from lorasp.report.charts import Row
from lorasp.report.collect import Results
from lorasp.report.equal_cost import equal_cost_frame, units
from lorasp.report.figures import Figure
from lorasp.report.heatmap import SWEEP_CAPTIONS, draw_sweeps, maps, sentences, sweeps_frame
from lorasp.report.pareto import front_words, methods_frame, pareto, pareto_points
from lorasp.report.ranking import (
    NORMALISED,
    NOTES,
    pairs,
    pairs_frame,
    ranking_frame,
    rankings,
)
from lorasp.report.ranking_figures import RANKING_CAPTIONS, draw_ranking
from lorasp.report.scopes import samples, scopes
from lorasp.report.tables import Table

FRONT = (
    "Circled, and joined by the line, is the Pareto front: the best score for at most so much. "
    "Bars are the 90 % interval of the mean (Student's t), dotted is the untouched base model, a "
    "hollow mark is a method of which a run failed. A name without room is left out; pointing at "
    "its mark shows it, and the table has all."
)
PARETO_CAPTIONS = {
    "parameters": f"Score against the number of trained parameters. {FRONT}",
    "file": f"Score against the size of the file that is saved. {FRONT}",
    "memory": f"Score against the measured peak memory of a training step. {FRONT}",
    "time": f"Score against the measured time of a training step. {FRONT}",
}
WORDS = (
    *("About", "Group", "On the front of", "Missing", "Recipe", "Model", "Task", "Equal to", "In"),
    *("With", "Values", "Setting"),
)
FIGURES = {"parameters": "trainable", "file": "file", "memory": "memory", "time": "time"}
CAPTIONS = PARETO_CAPTIONS | RANKING_CAPTIONS | SWEEP_CAPTIONS
HOLDS = (
    "Made from the numbers below, this holds at the scale {scale}: for these models, data, "
    "settings and seeds, with the recipe {recipe}. What is called shown is so by one-sided t tests "
    "on differences of the same seed at 0.05, corrected for their number by Holm's method: that a "
    "method learned more than the margin, over the methods; that it is within the margin of the "
    "best, over the others; that one is above another, both ways over all pairs, since the same "
    "scores have picked which one is best. The intervals in brackets (90 %, Student's t) are of "
    "one difference each and not corrected, so that one without 0 in it shows nothing yet. Memory "
    "and time are of one measured profile each."
)


def methods_section(
    config: Config, results: Results, every: Results, tables: list[Table], stamp: str
) -> tuple[dict[str, Any], dict[str, Figure], dict[str, pd.DataFrame]]:
    """What the templates show, the figures by file name, and the tables by file name.

    `results` are without the runs of sweeps, `every` has them.
    """
    places = samples(config, results)
    found = scopes(config, places, tables)
    points = pareto_points(config, results, places, found)
    ranked = rankings(config, places)
    chances = pairs(places, config["verdicts"]["recipe"])
    swept = maps(config, every)
    equal = equal_cost_frame(config, results, places)
    figures = draw_ranking(config, ranked, chances, stamp)
    figures |= {name: pareto(config, points, cost, stamp) for name, cost in FIGURES.items()}
    figures |= draw_sweeps(swept, stamp)
    listed = [
        entry | {"frame": ranking_frame(config, entry), "title": _titled(entry)} for entry in ranked
    ]
    costs = [
        {
            "title": str(scope),
            "decides": scope.recipe == config["verdicts"]["recipe"],
            "frame": methods_frame(points, scope),
            "fronts": front_words(points, scope),
        }
        for scope in dict.fromkeys(row["scope"] for row in points)
    ]
    told = [] if "no_result" in config else advice(config, results, places, points)
    shown = {
        "advice": told,
        "holds": NO_SCORE_COUNTS
        if "no_result" in config
        else HOLDS.format(scale=config["scale"], recipe=config["verdicts"]["recipe"]),
        "rankings": listed,
        "notes": [*NOTES, NORMALISED] if any(e["over_all"] for e in listed) else list(NOTES),
        "costs": sorted(costs, key=lambda entry: not entry["decides"]),
        "equal": equal,
        "units": units(equal) if len(equal) else "",
        "sweeps": sentences(swept),
        "maps": sweeps_frame(swept),
        "words": WORDS,
    }
    frames = {
        "ranking": _joined([entry for entry in listed if not entry["over_all"]]),
        "ranking-over-all": _joined([entry for entry in listed if entry["over_all"]]),
        "improvement": pairs_frame(config, chances),
        "methods-costs": _joined(shown["costs"]),
        "equal-cost": equal,
        "sweeps": shown["maps"],
    }
    return shown, figures, {name: frame for name, frame in frames.items() if not frame.empty}


def _titled(entry: Row) -> str:
    return f"{entry['title']}, {entry['recipe']}"


def _joined(entries: list[Row]) -> pd.DataFrame:
    """Tables under each other, with what each is about in a first column."""
    parts = [entry["frame"].assign(About=entry["title"]) for entry in entries]
    if not parts:
        return pd.DataFrame()
    joined = pd.concat(parts, ignore_index=True).fillna("")
    return joined[["About", *(name for name in joined.columns if name != "About")]]
