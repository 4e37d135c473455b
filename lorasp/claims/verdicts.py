"""Give every claim one of six verdicts, by tests that were fixed before the results."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd

from lorasp.claims import (
    Claim,
    Document,
    claims_file,
    load_claims,
    statistics,
    with_readings,
    wording,
)
from lorasp.claims.resources import judge_resource
from lorasp.claims.samples import (
    BASE,
    NotRun,
    Runs,
    Sample,
    index_runs,
    relation_sample,
    score_sample,
)
from lorasp.claims.sensitivity import measured
from lorasp.config import Config

SMOKE, MINI, PAPER = "smoke", "mini", "paper"
Record = dict[str, Any]


def judge(
    config: Config,
    names: list[str],
    scores: pd.DataFrame,
    planned: pd.DataFrame,
    profiles: pd.DataFrame,
    audit: list[Record] | None,
) -> list[Record]:
    """The verdicts on every claim of the claims files `names`, in the order of the files.

    scores: a row for each run and metric over the whole task, [model, task, method, recipe, seed,
    metric, value, headline]. planned: a row for each planned run, [model, task, method, recipe,
    seed]. profiles: `Results.profiles`. audit: the findings of results/audit.json, None without it.
    Each record is a `verdict` of verdicts.schema.json.
    """
    runs = index_runs(config, scores, planned)
    documents = {name: load_claims(name) for name in names}
    scale = judged_as(config, list(documents.values()))
    return [
        record
        for name, document in documents.items()
        for record in _judge_paper(claims_file(name).stem, document, scale, runs, profiles, audit)
    ]


def judged_as(config: Config, documents: list[Document]) -> str:
    """The scale whose rules hold: its own name, or of a scale with another name what it resembles.

    A configuration whose scores are no results, and generated models alone: smoke. The papers' own
    models alone: paper. All else: mini.
    """
    if "no_result" in config:
        return SMOKE
    if config["scale"] in (SMOKE, MINI, PAPER):
        return str(config["scale"])
    used = [config["models"][name] | {"name": name} for name in _used_models(config)]
    if all(model["source"]["kind"] == "generated" for model in used):
        return SMOKE
    claims = [claim for document in documents for claim in document["claims"]]
    named = {m for claim in claims for m in (claim.get("model"), *claim.get("models", ()))}
    own = all("stands_for" not in model and model["name"] in named for model in used)
    return PAPER if own else MINI


def _used_models(config: Config) -> set[str]:
    return {model for group in config["experiments"] for model in group["models"]}


def _judge_paper(
    paper: str,
    document: Document,
    scale: str,
    runs: Runs,
    profiles: pd.DataFrame,
    audit: list[Record] | None,
) -> list[Record]:
    findings = {f["id"]: f for f in audit or [] if Path(f["paper"]).stem == paper}
    main = document["paper"].get("recipe", runs.config["verdicts"]["recipe"])
    planned = {recipe for *_, recipe in runs.planned}
    recipes = [main, *(name for name in runs.config["recipes"] if name != main and name in planned)]
    tested = {recipe: _test_all(document, scale, runs, recipe) for recipe in recipes}
    records = []
    for claim in document["claims"]:
        record = {"paper": paper, "where": claim.get("where", "")}
        record |= {key: claim[key] for key in ("id", "kind", "printed")}
        record |= {key: claim[key] for key in ("family", "independent") if key in claim}
        if "check" in claim:
            record |= _audited(findings.get(claim["id"]), audit)
        elif "unjudged" in claim:
            record |= claim["unjudged"]
            if "sweep" in claim and scale != SMOKE:
                record |= dict(zip(("evidence", "rows"), measured(runs, claim), strict=True))
        elif reason := _out_of_scale(claim, scale):
            record |= _not_run(reason)
        elif claim["kind"] == "resource":
            record |= _measured(document, claim, scale, runs.config, profiles)
        else:
            record |= tested[main][claim["id"]] | {"recipe": main}
            others = [{"recipe": name} | tested[name][claim["id"]] for name in recipes[1:]]
            keys = ("recipe", "verdict", "because", "test")
            record["others"] = [
                {key: other[key] for key in keys if key in other}
                | _interpreted(claim, other, runs.config)
                for other in others
                if other["verdict"] != "not run"
            ]
        records.append(record | _interpreted(claim, record, runs.config))
    return records


def _interpreted(claim: Claim, record: Record, config: Config) -> Record:
    """The sentence of a verdict that rests on a method which is in part our reading, with that."""
    if record["verdict"] == "not run":
        return {}
    told = with_readings(record["because"], claim, config["methods"])
    return {} if told == record["because"] else {"because": told}


def _not_run(reason: object) -> Record:
    sentence = str(reason)
    return {"verdict": "not run", "because": f"{sentence[0].upper()}{sentence[1:]}."}


def _audited(finding: Record | None, audit: list[Record] | None) -> Record:
    """The audit's finding on a claim that needs no runs."""
    if audit is None:
        return _not_run("`lorasp audit` has not been run")
    if finding is None:
        return _not_run("the audit has no finding on it; run `lorasp audit` on this claims file")
    record = {"verdict": finding["verdict"], "because": finding["found"]}
    return record | {key: finding[key] for key in ("evidence", "rows") if key in finding}


def _out_of_scale(claim: Claim, scale: str) -> str | None:
    """Why the runs of this scale cannot judge a claim, whatever they say."""
    if scale == SMOKE:
        return "random models on invented data"
    if scale not in claim["scales"] or (claim["kind"] == "score" and scale != PAPER):
        return f"judged at {' or '.join(claim['scales'])} scale alone"
    return None


def _measured(
    document: Document, claim: Claim, scale: str, config: Config, profiles: pd.DataFrame
) -> Record:
    margin = document["margins"][claim["margin"]]["value"]
    try:
        return judge_resource(config, claim, margin, profiles, every_role=scale == PAPER)
    except NotRun as reason:
        return _not_run(reason)


def _test_all(document: Document, scale: str, runs: Runs, recipe: str) -> dict[str, Record]:
    """The claims about scores tested on the runs of one recipe, and corrected within families."""
    records: dict[str, Record] = {}
    families = defaultdict(list)
    for claim in document["claims"]:
        judged_by_runs = claim["kind"] in ("score", "relation") and "unjudged" not in claim
        if not judged_by_runs or "check" in claim or _out_of_scale(claim, scale):
            continue
        try:
            if claim["kind"] == "score":
                sample = score_sample(runs, claim, recipe)
            else:
                sample = relation_sample(runs, claim, recipe, every_role=scale == PAPER)
        except NotRun as reason:
            records[claim["id"]] = _not_run(reason)
            continue
        test = _run_test(claim, sample, document["margins"][claim["margin"]]["value"])
        families[claim["family"]].append((claim, sample, test))
    for family in families.values():
        statistics.adjust([test for _, _, test in family])
        for claim, sample, test in family:
            tests = [other for _, _, other in family]
            records[claim["id"]] = _decided(runs.config, claim, sample, test, tests)
    return records


def _run_test(claim: Claim, sample: Sample, margin: float) -> Record:
    if claim["kind"] == "score" or claim["test"] == "equivalent":
        return statistics.equivalent(sample.values, margin, sample.planned)
    if claim["test"] == "noninferior":
        return statistics.noninferior(sample.values, margin, sample.planned)
    return statistics.superior(sample.values, planned=sample.planned)


def _decided(
    config: Config, claim: Claim, sample: Sample, test: Record, family: list[Record]
) -> Record:
    """The verdict on a tested claim, with its sentences and evidence; fills in seeds_needed."""
    assay = _assay(claim, sample, test["margin"])
    learned = assay is None or (assay["p"] is not None and assay["p"] < statistics.ALPHA)
    evidence, verdict = list(sample.notes), statistics.decide(test)
    said = [] if test["estimate"] is None else [_finding(config, claim, sample, test)]
    if assay is not None:
        evidence.append(_assay_sentence(config, claim, assay, learned))
    if len(family) > 1:
        evidence.append(f"corrected (Holm) over the {len(family)} tested claims of its family")
    if sample.undefined:
        said = [f"The score of {sample.undefined[0]} is undefined; to leave it out would flatter"]
        evidence += [f"undefined: {run}" for run in sample.undefined]
    elif test["n"] < 2:
        said.append("One seed shows no spread to test against")
    elif test["p"] is None:
        said.append("The seeds do not differ, so there is no spread to test against")
    elif assay is not None and not learned and statistics.towards(test) == "p":
        said.append(_assay_sentence(config, claim, assay, learned))
        verdict = "inconclusive"
        if needed := _seeds_with_assay(test, sample, family, assay):
            test["seeds_needed"] = needed
            said.append(wording.settled_by(needed, statistics.MOST_SEEDS))
    elif verdict == "inconclusive":
        test["seeds_needed"] = _seeds(test, sample, family)
        said += _unsettled(test)
    return {
        "verdict": verdict,
        "because": " ".join(f"{sentence}." for sentence in said),
        "stand_in": sample.stand_in,
        "groups": sample.groups,
        "test": test,
        "evidence": evidence,
    }


def _finding(config: Config, claim: Claim, sample: Sample, test: Record) -> str:
    """What was found, how sure that is, and what the claim asks for."""
    if claim["kind"] == "score":
        found = wording.found(test, "Our mean", f"the printed {claim['printed']}", "seeds")
    else:
        left, right = (_label(config, claim[side]) for side in ("left", "right"))
        pairs = sample.values.shape[1]
        where = f" over {pairs} pairs of model and task" if pairs > 1 else ""
        found = wording.found(test, left, right, "pairs of seeds", where)
    if test["name"] == "superior":
        return f"{found}; the claim needs it above"
    return f"{found}; the margin is {float(test['margin'])}"


def _label(config: Config, method: str) -> str:
    return str(config["methods"][method]["label"])


def _assay(claim: Claim, sample: Sample, margin: float) -> Record | None:
    """Whether the method compared with has learned: a one-sided test of its gain over the margin.

    'Equivalent' and 'not worse' mean nothing where nobody learned anything. As in trials of
    non-inferiority (ICH E10, assay sensitivity) they need a comparator that is itself better than
    no treatment: here than the untouched model, and by more than the margin, so that a method that
    learns nothing cannot pass. None for a claim that needs no such proof.
    """
    if (
        sample.gain is None
        or claim["test"] == "superior"
        or BASE in (claim["left"], claim["right"])
    ):
        return None
    return statistics.superior(sample.gain, margin)


def _assay_sentence(config: Config, claim: Claim, assay: Record, learned: bool) -> str:
    method = _label(config, claim["right"])
    if assay["estimate"] is None:
        return f"Without scores of the untouched model nothing shows that {method} learned anything"
    found = wording.found(assay, method, "the untouched model", "seeds")
    if learned:
        return f"{found}, so it learned more than the margin ({wording.p_value(assay['p'])})"
    return (
        f"{found}: that it learned more than the margin is not shown, and methods that learned "
        "nothing would look the same"
    )


def _seeds(test: Record, sample: Sample, family: list[Record]) -> int | None:
    """The seeds that would settle a test, at the level of Holm's next step in its family."""
    level = statistics.ALPHA / statistics.still_open(family, statistics.towards(test))
    return statistics.seeds_needed(test, sample.values, level)


def _seeds_with_assay(
    test: Record, sample: Sample, family: list[Record], assay: Record
) -> int | None:
    """The seeds that would settle both; none would where the gain is within the margin."""
    if assay["p"] is None or statistics.towards(assay) != "p" or sample.gain is None:
        return None
    needed = [statistics.seeds_needed(assay, sample.gain, statistics.ALPHA)]
    if statistics.decide(test) != "reproduced":
        needed.append(_seeds(test, sample, family))
    return None if None in needed else max(n for n in needed if n is not None)


def _unsettled(test: Record) -> list[str]:
    """Why a test decided nothing, and what would settle it."""
    said, key = [], statistics.towards(test)
    if test[key] < statistics.ALPHA:
        alone, adjusted = wording.p_value(test[key]), wording.p_value(test[f"{key}_adjusted"])
        said.append(f"Alone this would decide ({alone}), in its family it does not ({adjusted})")
    return [*said, wording.settled_by(test["seeds_needed"], statistics.MOST_SEEDS)]
