"""What to use when: sentences whose numbers, intervals and doubts are known by hand."""

from pathlib import Path

import pandas as pd
import pytest
from advice_plan import PLAN, planted, told
from fakes import smoke
from scipy import stats

from lorasp.claims import load_claims
from lorasp.config import cells, resolve
from lorasp.report import write_report
from lorasp.report.advice import NO_SCORE_COUNTS, margin_of
from lorasp.report.advice_words import some
from lorasp.report.collect import collect
from lorasp.report.footnotes import named_in, told_in
from lorasp.report.pareto import front_words, methods_frame, pareto_points
from lorasp.report.scopes import samples, scopes
from lorasp.report.tables import paper_tables

EVIL = '<img src=x onerror="alert(1)">|[a](http://evil.example)'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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
    assert smallest.endswith("Smaller ones may lose less than that: LoRA-SP (20 KiB).")
    memory = lines["If memory is short"]  # 399 is the same to a hundredth
    shown = "LoRA takes within 1 % of the least of these in a training step, 400 MiB; its score, 84"
    assert memory.startswith(shown)
    least = "The least is 399 MiB, by LoRA, r/2. Also within 1 % of the least: LoRA-SP."
    assert memory.endswith(least)
    fastest = lines["If time is short"]
    shown = "LoRA, r/2 has the fastest training step of these, each measured once: 100 ms"
    assert fastest.startswith(f"{shown} (quartiles 95 to 105); its score, 80.1")
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
    compared = "the 4 methods that are shown to have learned, of 4 with scores and no failed run. "
    assert lines["Compared"].startswith(compared) and next(iter(lines)) == "Compared"
    assert lines["Few seeds"].startswith("4 runs of each method. So few show only large")


def test_a_clear_winner_is_named_with_its_lead() -> None:
    plan = {name: PLAN[name] for name in ("base", "ft", "lora", "lora-half")}
    lines = told(planted(plan))
    best = lines["If only the score counts"]
    assert best.startswith("FT, with 85.0 [")
    assert "Every other of these is shown to score lower; the next is LoRA, −0.4 [−" in best


def test_where_only_the_best_is_as_good_its_costs_are_told_and_what_may_be_too() -> None:
    plan = {name: PLAN[name] for name in ("base", "ft", "lora-half", "lora-sp")}
    lines = told(planted(plan))
    assert lines["If the file must be small"] == (
        "inconclusive. None of these with a smaller file than FT (3,906 KiB) is shown to lose less "
        "than 1.0 points. Smaller ones may lose less than that: LoRA-SP (20 KiB)."
    )
    assert lines["If memory is short"].endswith(". FT itself takes 900 MiB.")
    assert lines["If time is short"].endswith(". FT itself takes 300 ms.")


def test_no_method_may_be_as_good_in_one_line_and_is_worse_in_another() -> None:
    """Twelve points below in three noisy seeds: no test over all pairs shows it, so it stays open.

    The interval of the difference alone, which nothing corrects, would leave out the margin.
    """
    plan = {name: dict(PLAN[name]) for name in ("base", "ft", "lora", "lora-half", "lora-sp")}
    plan["ft"]["scores"] = [85.0, 85.3, 84.9]
    plan["lora"]["scores"] = [79.0, 80.5, 77.4]
    plan["lora-half"]["scores"] = [77.0, 80.1, 78.4]
    plan["lora-sp"]["scores"] = [77.9, 76.0, 79.1]
    lines = told(planted(plan))
    assert lines["If only the score counts"].endswith(
        "any of the other 3 (LoRA; LoRA, r/2; and LoRA-SP) may be as good."
    )
    assert lines["If the file must be small"] == (
        "inconclusive. None of these with a smaller file than FT (3,906 KiB) is shown to lose less "
        "than 1.0 points. Smaller ones may lose less than that: LoRA-SP (20 KiB); LoRA, r/2 (39 "
        "KiB); and LoRA (78 KiB)."
    )
    plan["ft"]["scores"] = [95.0, 95.3, 94.9]
    for shift, name in enumerate(("lora", "lora-half", "lora-sp")):
        plan[name]["scores"] = [80.0 + shift, 80.3 + shift, 79.95 + shift]
    lines = told(planted(plan))
    assert lines["If the file must be small"] == (
        "none of these with a smaller file than FT (3,906 KiB) is shown to lose less than 1.0 "
        "points."
    )


def test_only_a_budget_that_all_keep_is_answered_by_the_first_line() -> None:
    """The best of all has few parameters: within that budget it stands alone."""
    plan = {name: dict(PLAN[name]) for name in ("base", "ft", "lora", "lora-half")}
    plan["lora-half"]["scores"] = [90.0, 90.3, 89.9, 90.2]
    lines = told(planted(plan))
    few = lines["With at most 10,000 trained parameters"]
    assert few.startswith("LoRA, r/2, which trains 10,000, is the only one of these, with 90.1 [")
    assert list(lines)[-2] == "With at most 10,000 trained parameters"  # no more buys nothing
    plan["ft"]["file"] = 1_200_000  # 300,000 parameters, of which LoRA with 20,000 is second
    plan["lora-half"]["file"] = 120_000
    lines = told(planted(plan))
    some_of_them = lines["With at most 100,000 trained parameters"]
    assert some_of_them.startswith("LoRA, r/2, which trains 30,000, with 90.1 [")
    assert some_of_them.endswith("every other of these that is within it is shown to score lower.")
    plan["ft"]["file"] = 160_000
    lines = told(planted(plan))
    most = lines["With at most 100,000 trained parameters"]
    assert most == "as in the first line; LoRA, r/2 trains 30,000."


def test_few_seeds_of_some_methods_are_told_of_these_alone() -> None:
    plan = {name: dict(PLAN[name]) for name in ("base", "ft", "lora", "lora-half")}
    for name in plan:
        plan[name]["scores"] = plan[name]["scores"] * 3
    config = planted(plan)
    for group in config["experiments"]:
        group["methods"] = [name for name in group["methods"] if name != "lora"]
    config["experiments"].append(config["experiments"][0] | {"methods": ["lora"], "seeds": [0, 1]})
    assert told(config)["Few seeds"].startswith("2 runs of LoRA. So few show only large")


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
    least = "LoRA takes least of these in a training step, 400 MiB"
    assert lines["If memory is short"].startswith(least)
    assert lines["If time is short"].startswith(
        "LoRA has the fastest training step of these, each measured once: 200"
    )
    assert lines["Compared"] == (
        "the 2 methods that are shown to have learned, of 3 with scores and no failed run. 'The "
        "other', 'least' and 'fastest' mean of these 2."
    )
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
    assert "Compared" not in alone


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
        "trainable parameters: LoRA-SP, LoRA and FT",
        "saved file: LoRA-SP, LoRA and FT",
        "peak memory of a step: LoRA, r/2; LoRA; and FT",
        "time of a step: LoRA, r/2; LoRA-SP; LoRA; and FT",
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
        assert "where the untouched model has one run, from its score" in shown
        assert "claims of the LoRA-SP paper call a method no worse" in shown
    assert "<li>saved file: LoRA-SP †" in page and "\n- saved file: LoRA-SP †" in text
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
