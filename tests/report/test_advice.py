"""What to use when: sentences whose numbers, intervals and doubts are known by hand."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fakes import PROVENANCE, TIMES, smoke, write_run
from scipy import stats

from lorasp.claims import load_claims
from lorasp.config import Config, cells, resolve
from lorasp.report import write_report
from lorasp.report.advice import NO_SCORE_COUNTS, advice, margin_of
from lorasp.report.advice_words import some
from lorasp.report.collect import collect
from lorasp.report.footnotes import named_in, told_in
from lorasp.report.pareto import front_words, methods_frame, pareto_points
from lorasp.report.scopes import samples, scopes
from lorasp.report.tables import paper_tables
from lorasp.results import read_json, write_json

Plan = dict[str, dict[str, Any]]
EVIL = '<img src=x onerror="alert(1)">|[a](http://evil.example)'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def planted(plan: Plan, task: str = "sst2") -> Config:
    """One task; a method has `scores` by seed (None: diverged), `file`, `memory`, `time`."""
    config = smoke()
    config["scale"] = "mini"
    del config["no_result"]
    seeds = max(len(entry["scores"]) for entry in plan.values())
    group = {"models": ["roberta-tiny"], "tasks": [task], "recipes": ["stated"]}
    config["experiments"] = [group | {"methods": list(plan), "seeds": list(range(seeds))}]
    names = [name for name in plan if name != "base"]
    cell = {"model": "roberta-tiny", "methods": names, "batch": 8, "length": 32}
    config["profile"]["cells"] = [cell]
    for run in cells(config):
        entry = plan[run.method]
        if run.seed < len(entry["scores"]):
            value = entry["scores"][run.seed]
            write_run(config, run, value, diverged_at=3 if value is None else None)
            path = run.folder / "train.json"
            train = read_json(path, "train")
            train["adapter_bytes"] = entry["file"]
            train["parameters"] = {"trainable": entry["file"] // 4, "total": 10**6}
            write_json(path, train, "train")
    for name in names:
        write_profile(config, name, plan[name])
    return config


def write_profile(config: Config, method: str, entry: dict[str, Any]) -> None:
    """A profile as the stage writes it, with a time (q1 and q3 a tenth apart) and a memory."""
    import fakes

    fakes.write_profile(config, "roberta-tiny", method, entry["time"], 4 * entry["file"])
    path = Path("results/mini/profile/roberta-tiny", f"{method}.json")
    profile = read_json(path, "profile") | {"peak_memory_bytes": entry["memory"] * 2**20}
    write_json(path, profile | {"provenance": PROVENANCE, **TIMES}, "profile")


def told(config: Config) -> dict[str, str]:
    """The sentences of the only scope, by what stands before their colon."""
    results = collect(config)
    places = samples(config, results)
    points = pareto_points(
        config, results, places, scopes(config, places, paper_tables(config, results))
    )
    (entry,) = advice(config, results, places, points)
    assert entry["title"].startswith("roberta-tiny on ")
    return dict(sentence.split(": ", 1) for sentence in entry["sentences"])


PLAN: Plan = {
    "base": {"scores": [50.0] * 4, "file": 0},
    "ft": {"scores": [85.0, 85.2, 84.9, 85.1], "file": 4_000_000, "memory": 900, "time": 0.30},
    "lora": {"scores": [84.6, 84.9, 84.4, 84.7], "file": 80_000, "memory": 400, "time": 0.20},
    "lora-half": {"scores": [80.0, 80.3, 79.9, 80.2], "file": 40_000, "memory": 399, "time": 0.10},
    "lora-sp": {"scores": [83.0, 88.0, 81.0, 86.0], "file": 20_000, "memory": 402, "time": 0.104},
    "lora-sp-init": {"scores": [99.0, None, 99.0, 99.0], "file": 400, "memory": 1, "time": 0.01},
}


def test_every_need_has_its_sentence_with_numbers_and_doubts() -> None:
    lines = told(planted(PLAN))
    low, high = stats.t.interval(0.9, 3, 85.05, stats.sem(PLAN["ft"]["scores"]))
    best = lines["If only the score counts"]
    # LoRA-SP is half a point below on average, and its seeds are four points apart
    assert best.startswith("inconclusive. FT has the highest mean, 85.0 [")
    assert f"[{low:.1f}, {high:.1f}] (4 seeds); " in best
    assert best.endswith("LoRA-SP may be as good, the other 2 are shown to score lower.")
    # within a point of FT LoRA is shown to be (0.4 below, by 0.3 to 0.5), LoRA-SP is not
    smallest = lines["If the file must be small"]
    shown = (
        "LoRA, 78 KiB, the smallest that is shown to lose less than 1.0 points to FT; its score,"
    )
    assert smallest.startswith(f"{shown} 84.7 [84.4, 84.9], differs from that of FT by −0.4 [")
    assert "points (4 pairs of seeds)." in smallest
    assert smallest.endswith("Smaller ones may be as good: LoRA-SP (20 KiB).")
    memory = lines["If memory is short"]  # 399 is the same to a hundredth
    assert memory.startswith("LoRA takes least in a training step, 400 MiB; its score, 84.7")
    assert memory.endswith("Within 1 % of its memory: LoRA-SP; and LoRA, r/2.")
    fastest = lines["If time is short"]
    shown = "LoRA, r/2 has the fastest training step, 100 ms (quartiles 95 to 105); its score, 80.1"
    assert fastest.startswith(shown)
    assert "Maybe as fast, since the quartiles overlap: LoRA-SP." in fastest
    assert fastest.endswith("shown to lose less than 1.0 points to the best: LoRA, 200 ms.")
    few = lines["With at most 10,000 trained parameters"]
    assert few.startswith("inconclusive. LoRA-SP, which trains 5,000, has the highest mean, 84.5 [")
    # four points below LoRA-SP, whose seeds spread too far to show it over all pairs
    assert few.endswith("(4 seeds); the other (LoRA, r/2) may be as good.")
    more = lines["With at most 100,000 trained parameters"]
    assert more.startswith("inconclusive. LoRA, which trains 20,000, has the highest mean, 84.7")
    most = lines["With at most 1,000,000 trained parameters"]
    assert most == "as in the first line; FT trains 1,000,000."
    assert lines["Not considered"] == "LoRA-SP (init) (1 diverged)."
    assert lines["Few seeds"].startswith("4 runs of each method. So few show only large")


def test_a_clear_winner_is_named_with_its_lead() -> None:
    plan = {name: PLAN[name] for name in ("base", "ft", "lora", "lora-half")}
    lines = told(planted(plan))
    best = lines["If only the score counts"]
    assert best.startswith("FT, with 85.0 [")
    assert "Every other method is shown to score lower; the next is LoRA, −0.4 [−" in best


def test_where_only_the_best_is_as_good_its_costs_are_told_and_what_may_be_too() -> None:
    plan = {name: PLAN[name] for name in ("base", "ft", "lora-half", "lora-sp")}
    lines = told(planted(plan))
    assert lines["If the file must be small"] == (
        "inconclusive. No method with a smaller file than FT (3,906 KiB) is shown to lose less "
        "than 1.0 points. Smaller ones may be as good: LoRA-SP (20 KiB)."
    )
    assert lines["If memory is short"].endswith(". FT itself takes 900 MiB.")
    assert lines["If time is short"].endswith(". FT itself takes 300 ms.")


def test_of_many_names_the_first_are_told_and_of_many_seeds_no_doubt() -> None:
    assert some(["A", "B", "C"]) == "A, B and C"
    assert some(list("ABCDE")) == "A, B, C, D and E"  # as long as '1 more'
    assert some(list("ABCDEF")) == "A, B, C, D and 2 more"
    plan = {name: dict(PLAN[name]) for name in ("base", "ft", "lora")}
    for entry in plan.values():
        entry["scores"] = entry["scores"] * 2 + entry["scores"][:2]
    assert "Few seeds" not in told(planted(plan))


NOBODY = (
    "none of the {} methods is shown to score higher than the untouched model by more than 1.0 "
    "points. Either they learned too little, or the seeds are too few to tell, or the untouched "
    "model has no score. None is recommended, since methods that learned nothing would look the "
    "same."
)


def test_of_one_seed_nothing_can_be_told() -> None:
    plan = {name: entry | {"scores": entry["scores"][:1]} for name, entry in PLAN.items()}
    lines = told(planted(plan))
    one = "one run of each method, of which no test can show anything."
    assert lines == {"Inconclusive": NOBODY.format(5), "Few seeds": one}


def test_of_methods_that_learned_nothing_none_is_recommended() -> None:
    """All at chance they agree well within the margin, and so they do a margin above it."""
    chance = [50.0, 50.3, 49.8, 50.1]
    for shift in (0.0, 0.9):
        plan = {
            name: entry
            | {"scores": [one + shift * (name != "base") for one in chance[k:] + chance[:k]]}
            for k, (name, entry) in enumerate(list(PLAN.items())[:5])
        }
        lines = told(planted(plan))
        assert lines.pop("Few seeds").startswith("4 runs")
        assert lines == {"Inconclusive": NOBODY.format(4)}
    without = {name: PLAN[name] for name in ("ft", "lora")}  # nor where there is nothing to beat
    assert list(told(planted(without))) == ["Inconclusive", "Few seeds"]


def test_only_methods_that_have_learned_are_recommended() -> None:
    plan = {name: PLAN[name] for name in ("base", "ft", "lora", "lora-half")}
    idle = plan["lora-half"] | {"scores": [50.0, 50.3, 49.8, 50.1], "memory": 1, "time": 0.001}
    lines = told(planted(plan | {"lora-half": idle}))
    assert lines["If memory is short"].startswith("LoRA takes least in a training step, 400 MiB")
    assert lines["If time is short"].startswith("LoRA has the fastest training step, 200 ms")
    assert lines["Not recommended"] == (
        "LoRA, r/2, not shown to score higher than the untouched model by more than 1.0 points "
        "over the same seeds."
    )
    alone = told(
        planted(
            {name: entry for name, entry in (plan | {"lora-half": idle}).items() if name != "ft"}
        )
    )
    assert alone["If only the score counts"].startswith("LoRA, with 84.7 [") and len(alone) == 3


def test_equal_scores_and_missing_seeds_are_not_told_apart() -> None:
    plan = {name: dict(PLAN[name]) for name in ("base", "ft", "lora", "lora-half")}
    plan["lora"] |= {"scores": plan["ft"]["scores"]}
    plan["lora-half"] |= {"scores": [80.0, 80.3, 79.9]}
    lines = told(planted(plan))
    # the differences of LoRA are all 0, so that there is nothing to test
    assert lines["If only the score counts"].endswith(
        "only LoRA, r/2 is shown to score lower, the other may be as good (of LoRA the runs of the "
        "same seed are too few, or all alike)."
    )
    assert lines["Considered with the runs that there are"] == "LoRA, r/2 (1 not run)."


def test_the_margin_is_that_of_the_claims() -> None:
    config = smoke()
    margins = load_claims()["margins"]
    assert margin_of(config, ("sst2",)) == margins["glue"]["value"]
    assert margin_of(config, ("mrpc",)) == margins["glue-small"]["value"]
    assert margin_of(config, ("sst2", "mrpc")) == margins["average"]["value"]
    assert margin_of(config, ("wmt16-en-ro",)) == margins["translation"]["value"]
    own = Path("own.yaml")
    own.write_text(
        "version: 1\nfamily: classification\ntext: [sentence]\nlabel: label\nlabels: [a, b]\n"
        "train: train\nevaluate: [validation]\nmetrics: [accuracy]\nheadline: accuracy\n"
    )
    config["tasks"]["own"] = config["tasks"]["sst2"] | {"definition": "own.yaml"}
    assert margin_of(config, ("own",)) is None


def test_the_table_of_costs_names_the_fronts_and_what_failed() -> None:
    config = planted(PLAN)
    results = collect(config)
    places = samples(config, results)
    (scope,) = scopes(config, places, paper_tables(config, results))
    points = pareto_points(config, results, places, [scope])
    rows = {row["Method"]: row for row in methods_frame(points, scope).to_dict("records")}
    assert rows["LoRA"]["Trained share"] == "2 %" and rows["LoRA"]["Saved file, KiB"] == "78.1"
    assert rows["LoRA"]["Peak memory of a step, MiB"] == "400"
    assert [rows[name]["Place"] for name in ("FT", "LoRA", "LoRA-SP", "LoRA, r/2", "Base")] == list(
        "12345"
    )
    assert rows["LoRA-SP (init)"]["Place"] == "–"  # noqa: RUF001
    assert rows["LoRA-SP (init)"]["Missing"] == "1 diverged"
    # LoRA, r/2 costs more than LoRA-SP and scores less; the failed one is on no front
    assert front_words(points, scope) == [
        "trainable parameters: LoRA-SP, LoRA, FT",
        "saved file: LoRA-SP, LoRA, FT",
        "peak memory of a step: LoRA, r/2, LoRA, FT",
        "time of a step: LoRA, r/2, LoRA-SP, LoRA, FT",
    ]
    assert rows["LoRA-SP (init)"]["On the front of"] == "–"  # noqa: RUF001


def test_methods_are_compared_where_all_of_them_have_runs() -> None:
    """A method with one of two tasks is compared on that one, those with both on both too."""
    config = planted(PLAN)
    group = config["experiments"][0]
    config["experiments"].append(group | {"tasks": ["rte"], "methods": ["base", "ft", "lora"]})
    results = collect(config)
    places = samples(config, results)
    found = scopes(config, places, paper_tables(config, results))
    assert [(scope.tasks, len(scope.methods)) for scope in found] == [
        (("sst2",), 6),
        (("sst2", "rte"), 3),
    ]


def budget(config: Config, method: str, off: float, note: str | None) -> None:
    write_json(
        Path(f"results/mini/budget/roberta-tiny/{method}.json"),
        {
            "scale": "mini", "model": "roberta-tiny", "method": method, "budget": "trainable",
            "reference": "lora", "unit": "trained parameters", "settings": {"rank": 7},
            "steps": 1.0, "asked": 2000, "achieved": 2000 * (1 + off), "off": off, "note": note,
            "made_from": "0" * 64,
        },
        "budget",
    )  # fmt: skip


def trained_with(method: str, seed: int, taken: int, **changes: Any) -> None:
    """A run's train.json as it is where the budget, changed so, was what it was trained with."""
    folder = Path("results/mini/roberta-tiny/sst2", method, "stated", f"seed-{seed}")
    found = read_json(folder / "train.json", "train") | {"steps": taken}
    fitted = read_json(Path(f"results/mini/budget/roberta-tiny/{method}.json"), "budget")
    found["config"]["method"]["budget"] = fitted | changes
    write_json(folder / "train.json", found, "train")


def test_at_equal_cost_the_match_and_the_difference_are_told() -> None:
    from lorasp.report.equal_cost import equal_cost_frame

    config = planted({name: PLAN[name] for name in ("base", "ft", "lora", "lora-half")})
    results = collect(config)
    config["methods"]["lora-half"] |= {"match": {"trainable": "lora"}, "size": "rank"}
    config["methods"]["ft"] |= {"match": {"time": "lora-sp"}}

    def rows() -> list[dict[str, Any]]:
        frame = equal_cost_frame(config, results, samples(config, results))
        return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]

    budget(config, "lora-half", -0.125, "nothing comes nearer")
    ft, half = rows()
    assert (half["Equal to"], half["In"]) == ("LoRA", "trained parameters")
    assert (half["Asked"], half["Achieved"], half["Off"]) == ("2,000", "1,750", "−12.50 %")
    assert half["With"] == "rank 7 (no run of it yet)"
    assert half["Score difference"] == "−4.6 [−4.6, −4.5], 4 pairs"
    assert (ft["Asked"], ft["Score difference"]) == ("not fitted", "no pair of runs")
    for seed in range(4):
        trained_with("lora-half", seed, 4)
    budget(config, "lora-half", 0.0, None)  # fitted again, after the runs
    _, half = rows()
    assert (half["Achieved"], half["Off"]) == ("1,750", "−12.50 %")
    assert half["With"] == "rank 7 (nothing comes nearer)"
    trained_with("lora-half", 3, 4)
    _, half = rows()
    assert (half["Achieved"], half["Off"]) == ("1,750; 2,000", "−12.50 %; +0.00 %")


def test_of_equal_time_the_steps_that_were_taken_are_told() -> None:
    from lorasp.report.equal_cost import equal_cost_frame

    config = planted({name: PLAN[name] for name in ("base", "lora", "lora-half")})
    results = collect(config)
    config["methods"]["lora-half"] |= {"match": {"time": "lora"}}
    budget(config, "lora-half", 0.0, None)
    for seed in range(4):
        trained_with("lora-half", seed, 9 if seed else 10, budget="time", settings={}, steps=2.5)
    (row,) = equal_cost_frame(config, results, samples(config, results)).to_dict("records")
    assert row["With"] == "2.5 times the steps; 9 to 10 steps taken, 4 by the other"


def test_names_are_text_on_the_page_and_a_reading_is_marked_wherever_it_stands() -> None:
    config = planted({name: PLAN[name] for name in ("base", "ft", "lora", "lora-sp")})
    config["methods"]["lora"]["label"] = EVIL
    config["methods"]["lora-sp"]["interpretation"] = f"how it is drawn {EVIL}"
    folder = write_report(config).parent
    page, text = ((folder / f"report.{kind}").read_text() for kind in ("html", "md"))
    for shown in (page, text):
        assert "What to use when" in shown and "<img src=x" not in shown
        assert "LoRA-SP †" in shown and shown.count("how it is drawn") >= 4
        assert NO_SCORE_COUNTS not in shown and "for the number of tests by Holm" in shown
    assert "[a](http" not in text
    for name in ("ranking", "methods-costs", "table1"):
        for kind in ("csv", "md", "tex"):
            table = (folder / "tables" / f"{name}.{kind}").read_text()
            assert ("LoRA-SP $\\dagger$" if kind == "tex" else "LoRA-SP †") in table
            assert table.count("how it is drawn") == 1
    for name in ("runs", "scores"):  # numbers, with the names that the configuration gives
        assert "how it is drawn" not in (folder / "tables" / f"{name}.csv").read_text()
    assert "†" not in (folder / "verdicts.json").read_text()


def test_a_reading_stands_only_under_tables_and_sentences_that_name_its_method() -> None:
    readings = [{"label": "LoRA-SP †", "text": "a reading"}, {"label": "FT †", "text": "another"}]
    frames = [pd.DataFrame({"Method": ["LoRA"]}), pd.DataFrame({"Method": ["LoRA-SP †, half"]})]
    assert named_in(readings, *frames) == []
    assert named_in(readings, *frames, pd.DataFrame({"Equal to": ["LoRA-SP †"]})) == readings[:1]
    assert told_in(readings, ["LoRA and FT †.", "LoRA-SP"]) == readings[1:]


def test_where_no_score_counts_no_advice_is_given() -> None:
    config = planted({name: PLAN[name] for name in ("base", "ft", "lora")})
    config["no_result"] = "nothing counts"
    for group in config["experiments"]:
        assert resolve(config, cells(config)[0])["task"]["name"] == group["tasks"][0]
    page = (write_report(config).parent / "report.html").read_text()
    assert NO_SCORE_COUNTS in page and "If only the score counts" not in page
