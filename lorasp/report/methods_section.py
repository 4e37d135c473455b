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
from lorasp.report.pareto import draw_fronts, front_words, methods_frame, pareto_points
from lorasp.report.ranking import (
    NORMALISED,
    NOTES,
    SEEDS_DIFFER,
    pairs,
    pairs_frame,
    ranking_frame,
    rankings,
)
from lorasp.report.ranking_figures import RANKING_CAPTIONS, draw_ranking, undrawn
from lorasp.report.scopes import samples, scopes
from lorasp.report.tables import Table

FRONT = (
    "Up and to the left is better. The line joins the circled methods, the Pareto front: no other "
    "method costs less and scores as high by its mean, which with few seeds can be chance. Bars "
    "are 90 % intervals of the mean (Student's t); a dotted line, where there is room, is the "
    "untouched base model; a hollow mark is a method of which a run failed. Point at a mark for "
    "its name where the plot has no room for it; the tables below name all."
)
PARETO_CAPTIONS = {
    "parameters": f"Mean score against the number of trained parameters. {FRONT}",
    "file": f"Mean score against the size of the saved file. {FRONT}",
    "memory": f"Mean score against the measured peak memory of a training step. {FRONT}",
    "time": f"Mean score against the measured time of a training step. {FRONT}",
}
WORDS = (
    *("About", "Group", "On the front of", "Missing", "Recipe", "Model", "Task", "Equal to", "In"),
    *("With", "Values", "Setting", "Method"),
)
UNBROKEN = ("Score", "Normalised mean", "IQM", "Off", "Score difference")
CAPTIONS = PARETO_CAPTIONS | RANKING_CAPTIONS | SWEEP_CAPTIONS
HOLDS = (
    "What the runs of this page advise. It holds for the scale {scale} and the recipe {recipe}: "
    "for these models, data, settings and seeds, and says nothing of larger models. 'Shown' is "
    "what a statistical test shows. 'Inconclusive' is what these runs cannot tell, which does not "
    "mean that methods are equal. In brackets are 90 % intervals."
)
DECIDED = (
    "Every test is a t test at 0.05 on the differences between runs of the same seed, or, where "
    "the untouched model has one run, from its score. It is corrected for the number of tests by "
    "Holm's method.",
    "Four things are tested. Has a method learned, that is, does it score higher than the "
    "untouched model by more than the margin (one-sided, corrected over the methods)? Does it lose "
    "less than the margin to the method with the highest mean (one-sided, over the others)? Which "
    "of two methods scores higher (two-sided, over all pairs, because the same scores have picked "
    "the highest mean)? Which of two does so by more than the margin (likewise)? A method "
    "that is neither shown to lose less than the margin nor shown to lose more 'may lose less'.",
    "The margin is the one within which the claims of the LoRA-SP paper call a method no worse on "
    "these tasks. Claims of other papers set none.",
    "An interval in brackets is Student's t for one mean or one difference alone, without that "
    "correction. So an interval of a difference that leaves out 0 does not yet show a difference.",
    "Memory and time come from one measurement of each method. Quartiles are those of its steps: "
    "how far a second measurement would be from the first is not in them.",
)


FITTED = (
    "Each row is a method whose settings, or number of steps, were fitted so that it takes as much "
    "of one thing as another method, the reference, takes. Asked is what the reference takes, "
    "achieved what the fitted method takes, off how far that is from what was asked. The score "
    "difference is its mean score less that of the reference, in points, over the seeds that both "
    "have, with its 90 % interval; it is of one comparison, without a correction for their number."
)
VARIED = (
    "A method is run with every combination of some values of its settings and of the recipe, all "
    "else equal. How far the score moves tells how much care the settings need."
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
    ranking_figures = draw_ranking(config, ranked, chances, stamp)
    figures = dict(ranking_figures)
    fronts, no_front = draw_fronts(config, points, stamp)
    figures |= fronts
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
        "decided": [] if "no_result" in config else list(DECIDED),
        "rankings": listed,
        "undrawn": undrawn(ranked) if not ranking_figures else "",
        "notes": [*NOTES, NORMALISED] if any(e["over_all"] for e in listed) else list(NOTES),
        "seeds_differ": SEEDS_DIFFER,
        "no_front": no_front,
        "costs": sorted(costs, key=lambda entry: not entry["decides"]),
        "equal": equal,
        "fitted": FITTED,
        "units": units(equal) if len(equal) else "",
        "varied": VARIED,
        "sweeps": sentences(swept),
        "maps": sweeps_frame(swept),
        "words": WORDS,
        "scores": UNBROKEN,
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
    return f"{entry['title']}, recipe {entry['recipe']}"


def _joined(entries: list[Row]) -> pd.DataFrame:
    """Tables under each other, with what each is about in a first column."""
    parts = [entry["frame"].assign(About=entry["title"]) for entry in entries]
    if not parts:
        return pd.DataFrame()
    joined = pd.concat(parts, ignore_index=True).fillna("")
    return joined[["About", *(name for name in joined.columns if name != "About")]]
