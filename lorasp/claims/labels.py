"""Checks of what a paper announces, names and labels against what it prints."""

from collections import Counter
from fnmatch import fnmatch
from statistics import mean
from typing import Any

from lorasp.claims import Claim, Document
from lorasp.claims.counts import shapes_of
from lorasp.claims.printed import Outcome, Pattern, chosen, listed
from lorasp.errors import WorkError
from lorasp.tasks import load_task


def agree(document: Document, claim: Claim, *, printed: list[str]) -> Outcome:
    """Words that the paper prints for one thing are the same, but for case, hyphens and spaces."""
    distinct = {"".join(filter(str.isalnum, text.lower())): text for text in printed}
    rows = [
        {"printed": text, "initials": "".join(w[0] for w in text.replace("-", " ").split()).upper()}
        for text in printed
    ]
    if len(distinct) == 1:
        return Outcome("reproduced", f"all {len(printed)} are {printed[0]!r}", [], rows)
    found = f"{len(distinct)} different ones: {'; '.join(distinct.values())}"
    return Outcome("inconsistent", found, [], rows)


def pairs(document: Document, claim: Claim, *, printed: list[list[str]]) -> Outcome:
    """Each thing that the paper prints is what another place in it says: pairs of equal words."""
    rows = [{"here": one, "there": other, "same": one == other} for one, other in printed]
    wrong = [f"{row['here']} is {row['there']}" for row in rows if not row["same"]]
    found = f"{len(wrong)} of {len(rows)} differ" + (f": {'; '.join(wrong)}" if wrong else "")
    return Outcome("inconsistent" if wrong else "reproduced", found, [], rows)


def present(
    document: Document, claim: Claim, *, of: dict[str, Pattern], announced: bool = True
) -> Outcome:
    """Among the paper's scores and counts, one has fields like these: `{model: t5-small}`.

    What the paper announces and does not print is inconsistent; without an announcement, its
    absence means that the paper does not say enough.
    """
    numbers = [one for one in document["claims"] if one["kind"] in ("score", "count")]
    fields = {key for one in document["claims"] for key in one}
    if unknown := set(of) - fields:
        raise WorkError(f"no claim has a field {listed(sorted(unknown))}")
    wanted = {key: [like] if isinstance(like, str) else like for key, like in of.items()}
    matching = [
        one
        for one in numbers
        if all(
            any(fnmatch(str(one.get(key, "")), pattern) for pattern in patterns)
            for key, patterns in wanted.items()
        )
    ]
    told = listed(f"{key} {' or '.join(patterns)}" for key, patterns in wanted.items())
    found = f"{len(matching)} of the {len(numbers)} numbers taken from the paper have {told}"
    (first, *_) = of
    seen = Counter(str(one.get(first, "none")) for one in numbers)
    evidence = []
    if len(seen) <= 12:
        values = ", ".join(f"{value} ({count})" for value, count in seen.items())
        evidence.append(f"By {first}: {values}.")
    absent = "inconsistent" if announced else "not comparable"
    return Outcome("reproduced" if matching else absent, found, evidence)


def swept(document: Document, claim: Claim, *, announced: bool = True) -> Outcome:
    """Some score is printed for more than one setting, as a sensitivity analysis would have it."""
    keys = ("model", "method", "task", "metric")
    cells = Counter(
        tuple(one[key] for key in keys) for one in document["claims"] if one["kind"] == "score"
    )
    if not cells:
        raise WorkError("check swept finds no score in this file")
    repeated = [cell for cell, count in cells.items() if count > 1]
    found = f"{len(repeated)} of {len(cells)} combinations of model, method, task and metric have"
    found += " more than one printed score"
    absent = "inconsistent" if announced else "not comparable"
    return Outcome("reproduced" if repeated else absent, found)


def row_labels(document: Document, claim: Claim, *, of: Pattern, labels: dict[str, str]) -> Outcome:
    """Each row's label is of the public model whose parameter count is nearest to the printed one.

    `labels` gives each public model the pattern that a label for it matches: `{llama-7b: "*7B*"}`.
    """
    rows, wrong = [], []
    for cell in chosen(document, of, "parameters"):
        distance = {name: abs(cell["value"] / shapes_of(name).total - 1) for name in labels}
        nearest = min(distance, key=lambda name: distance[name])
        fits = fnmatch(cell["row"], labels[nearest])
        rows.append(
            {
                "row": cell["row"],
                "printed": cell["printed"],
                "nearest": nearest,
                "off": round(distance[nearest], 4),
                "fits": fits,
            }
        )
        if not fits:
            wrong.append(f"the row {cell['row']!r} holds {cell['printed']}, which is {nearest}")
    names = Counter("".join(str(row["row"]).split()) for row in rows)
    evidence = [
        f"{count} rows have the label {name}." for name, count in names.items() if count > 1
    ]
    found = "; ".join(wrong) or f"all {len(rows)} labels fit the counts in their rows"
    return Outcome("inconsistent" if wrong else "reproduced", found, evidence, rows)


def nearest(
    document: Document,
    claim: Claim,
    *,
    of: Pattern,
    models: dict[str, float],
    named: str,
    source: str,
) -> Outcome:
    """Printed scores are nearest to the base score of the model that the paper names.

    `models` gives each candidate the score of its base model, known from `source`.
    """
    if named not in models:
        raise WorkError(f"named is {named!r}; allowed is one of {listed(models)}")
    rows, wrong = [], []
    for cell in chosen(document, of):
        closest = min(models, key=lambda name: abs(cell["value"] - models[name]))
        gains = {f"above {name}": round(cell["value"] - base, 2) for name, base in models.items()}
        rows.append({"id": cell["id"], "printed": cell["printed"], "nearest": closest, **gains})
        if closest != named:
            wrong.append(cell)
    bases = listed(f"{name} {base:g}" for name, base in models.items())
    found = f"{len(wrong)} of {len(rows)} scores are nearer to another base model than to {named}"
    below = [cell["printed"] for cell in wrong if cell["value"] < models[named]]
    evidence = [f"Base scores: {bases} ({source})."]
    if below:
        evidence.append(f"Below the untouched {named}: {listed(below)}.")
    return Outcome("inconsistent" if wrong else "reproduced", found, evidence, rows)


def one_column(document: Document, claim: Claim, *, task: str) -> Outcome:
    """A table has a number for each of a task's evaluation sets."""
    sets = load_task(task)["evaluate"]
    printed = Counter(
        (one["model"], one["method"], one["metric"])
        for one in document["claims"]
        if one["kind"] == "score" and one["task"] == task
    )
    if not printed:
        raise WorkError(f"check one_column finds no score of task {task!r}")
    numbers = max(printed.values())
    found = f"{task} has {len(sets)} evaluation sets ({listed(sets)}) and {numbers} number a row"
    return Outcome("reproduced" if numbers >= len(sets) else "inconsistent", found)


def published(document: Document, claim: Claim, *, of: Pattern) -> Outcome:
    """The mean of printed scores is that of independent ones, to within the claim's margin."""
    if "margin" not in claim:
        raise WorkError("check published needs the claim's margin")
    cells = [one for one in chosen(document, of) if "independent" in one]
    if not cells:
        raise WorkError(f"no claim like {of} has an independent number")
    rows: list[dict[str, Any]] = [
        {
            "id": one["id"],
            "printed": one["printed"],
            "independent": one["independent"]["value"],
            "difference": round(one["value"] - one["independent"]["value"], 2),
            "source": one["independent"]["source"],
        }
        for one in cells
    ]
    difference = mean(row["difference"] for row in rows)
    margin = document["margins"][claim["margin"]]["value"]
    largest = max(rows, key=lambda row: abs(row["difference"]))
    found = (
        f"over {len(rows)} scores the printed ones are {abs(difference):.1f} points "
        f"{'above' if difference > 0 else 'below'} the independent ones on average"
    )
    titles = sorted({document["references"][row["source"]]["title"] for row in rows})
    evidence = [
        f"The largest difference is {largest['difference']:+.1f}, in {largest['id']}"
        f"{_rest(rows, largest)}.",
        f"The margin is {margin:g} points.",
        f"Source: {listed(titles)}.",
    ]
    verdict = "reproduced" if abs(difference) <= margin else "not reproduced"
    return Outcome(verdict, found, evidence, rows)


def _rest(rows: list[dict[str, Any]], largest: dict[str, Any]) -> str:
    rest = [row["difference"] for row in rows if row is not largest]
    return f"; without it the mean is {mean(rest):+.1f}" if rest else ""
