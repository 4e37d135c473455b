"""What the report reads and lays out, against numbers worked out by hand."""

import statistics
from pathlib import Path

import pytest
from fakes import PROVENANCE, rename, score, smoke, write_all, write_run

from lorasp.config import Config, cells
from lorasp.errors import WorkError
from lorasp.report.collect import collect
from lorasp.report.costs import profile_frame
from lorasp.report.tables import TIMES, as_frame, as_tidy, paper_tables

RTE = ("roberta-tiny", "rte", "lora-sp", "stated")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The smoke configuration in an empty folder, without a result."""
    config = smoke()
    monkeypatch.chdir(tmp_path)
    return config


def text_of(config: Config, table: int, method: str, source: str, column: str) -> str:
    frame = as_frame(paper_tables(config, collect(config))[table - 1])
    row = frame[(frame["Method"] == method) & (frame["Source"] == source)]
    assert len(row) == 1
    return str(row[column].iloc[0])


def test_without_results_every_planned_cell_says_not_run(config: Config) -> None:
    results = collect(config)
    assert len(results.runs) == len(cells(config)) and set(results.runs["status"]) == {"not run"}
    tidy = as_tidy(paper_tables(config, results))
    assert set(tidy["status"]) == {"not run", "not planned", "paper", "independent"}
    planned = {(c.model, c.task, c.method, c.recipe) for c in cells(config)}
    not_run = tidy[tidy["status"] == "not run"]
    assert len(not_run) == len(planned) + 3 * 5  # three more columns for each method of Table 2
    assert set(profile_frame(config, results)["Step, median"]) == {"not run"}


def test_a_cell_is_mean_and_sd_over_the_seeds(config: Config) -> None:
    write_all(config)
    values = [score(cell) for cell in cells(config, "roberta-tiny,rte,lora-sp,stated")]
    mean, sd = statistics.mean(values), statistics.stdev(values)
    expected = f"{mean:.1f} ± {sd:.1f} (2)"
    assert text_of(config, 1, "LoRA-SP", "ours, stated", "RTE") == expected
    assert text_of(config, 1, "LoRA-SP", "ours, tuned", "RTE") == "·"
    assert text_of(config, 2, "LoRA", "ours, stated", "ROUGE-L") == "40.0 ± 0.0 (2)"


def test_missing_seeds_and_undefined_metrics_are_counted(config: Config) -> None:
    first, second = cells(config, "roberta-tiny,rte,lora-sp,stated")
    write_run(config, first, 61.25)
    assert text_of(config, 1, "LoRA-SP", "ours, stated", "RTE") == "61.2 (1 of 2)"
    write_run(config, second, None)
    assert text_of(config, 1, "LoRA-SP", "ours, stated", "RTE") == "61.2 (1 of 2, 1 undefined)"
    write_run(config, first, None)
    assert text_of(config, 1, "LoRA-SP", "ours, stated", "RTE") == "undefined (0 of 2, 2 undefined)"


def test_a_run_without_metrics_is_trained_and_no_more(config: Config) -> None:
    first, _ = cells(config, "roberta-tiny,rte,lora-sp,stated")
    write_run(config, first, None, trained_only=True)
    runs = collect(config).runs
    assert sorted(runs["status"].unique()) == ["not run", "trained, not evaluated"]
    assert text_of(config, 1, "LoRA-SP", "ours, stated", "RTE") == "not run"


def test_a_damaged_file_is_named(config: Config) -> None:
    first, _ = cells(config, "roberta-tiny,rte,lora-sp,stated")
    write_run(config, first, 61.0)
    (first.folder / "metrics.json").write_text("{")
    with pytest.raises(WorkError, match=r"rte/lora-sp/stated/seed-0/metrics.json is not JSON"):
        collect(config)


def test_other_results_are_named_and_left_out(config: Config) -> None:
    first, second = cells(config, "roberta-tiny,rte,lora-sp,stated")
    write_run(config, first, 61.0)
    write_run(config, second, 63.0)
    for group in config["experiments"]:
        group["seeds"] = [0]
    results = collect(config)
    assert results.unplanned == [str(second.folder / "metrics.json")]
    assert text_of(config, 1, "LoRA-SP", "ours, stated", "RTE") == "61.0 (1)"


def test_a_result_of_another_configuration_is_marked(config: Config) -> None:
    first, _ = cells(config, "roberta-tiny,rte,lora-sp,stated")
    write_run(config, first, 61.0)
    assert collect(config).runs["same_config"].all()
    config["recipes"]["stated"]["learning_rate"] = 1.0
    config["methods"]["lora-sp"]["label"] = "another label changes nothing"
    runs = collect(config).runs
    assert runs.loc[~runs["same_config"], "folder"].tolist() == [str(first.folder)]


def test_the_papers_layout_with_its_own_numbers_first(config: Config) -> None:
    for old, new in (("roberta-tiny", "roberta-base"), ("llama-tiny", "llama-7b")):
        rename(config, "model", old, new)
        del config["models"][new]["stands_for"]
    table1, table2, table3 = (as_frame(table) for table in paper_tables(config, collect(config)))
    assert table1.columns.tolist()[4:] == [
        "MNLI",
        "SST-2",
        "MRPC",
        "CoLA",
        "QNLI",
        "QQP",
        "RTE",
        "STS-B",
    ]
    paper = table1[(table1["Method"] == "LoRA-SP") & (table1["Source"] == "paper")].iloc[0]
    assert paper.tolist()[3:] == [
        "0.45M",
        "86.2",
        "93.6",
        "91.1",
        "62.5",
        "91.4",
        "90.4",
        "70.3",
        "90.2",
    ]
    assert table1["Method"].iloc[0] == "Base" and table1["Source"].iloc[0] == "ours"
    assert table2.columns.tolist()[4:] == ["BLEU", "ROUGE-1", "ROUGE-2", "ROUGE-L"]
    assert "paper, t5-base" in table2["Source"].tolist()
    paper = table3[(table3["Method"] == "LoRA") & (table3["Source"] == "paper")].iloc[0]
    assert paper.tolist()[3:] == ["157.3M", "6782.1M", "38.9"]


def test_stand_ins_have_their_own_names_and_say_whose_role_they_play(config: Config) -> None:
    rename(config, "task", "sst2", "movie-reviews", definition="sst2")
    table = paper_tables(config, collect(config))[0]
    column = next(column for column in table["columns"] if column["task"] == "movie-reviews")
    assert (column["heading"], column["note"]) == (
        "movie-reviews",
        "accuracy; in the role of SST-2",
    )
    assert not column["papers"]
    assert text_of(config, 1, "FT", "paper, roberta-base", "movie-reviews") == "92.1"


def test_two_tasks_of_one_heading_are_told_apart(config: Config) -> None:
    rename(config, "task", "wmt16-en-ro", "ui", definition="wmt16-en-ro")
    assert "BLEU" in as_frame(paper_tables(config, collect(config))[1]).columns
    config["tasks"]["more-ui"] = config["tasks"]["ui"]
    config["experiments"][2]["tasks"].append("more-ui")
    columns = as_frame(paper_tables(config, collect(config))[1]).columns
    assert {"ui: BLEU", "more-ui: BLEU", "ui: ROUGE-L"} < set(columns)


def test_a_task_of_no_table_of_the_paper_has_a_table_of_its_own(
    config: Config, tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "version: 1\nfamily: classification\ntext: [sentence]\nlabel: label\nlabels: [a, b]\n"
        "train: train\nevaluate: [validation]\nmetrics: [accuracy]\nheadline: accuracy\n"
    )
    rename(config, "task", "sst2", "own", definition=str(own))
    tables = paper_tables(config, collect(config))
    assert [table["name"] for table in tables] == ["table1", "table2", "table3", "other"]
    assert [column["heading"] for column in tables[3]["columns"]] == ["own"]


def test_parameters_and_costs_stand_beside_lora(config: Config) -> None:
    write_all(config)
    assert text_of(config, 1, "LoRA-SP", "ours, stated", "Trainable parameters") == "1,200"
    costs = profile_frame(config, collect(config)).set_index(["Model", "Method"])
    half = costs.loc[("roberta-tiny", "LoRA-SP")]
    assert half["Adapter states"] == f"18.8 KiB ({TIMES}0.50)"  # 16 by 1,200 bytes of 16 by 2,400
    assert costs.loc[("roberta-tiny", "FT"), "Adapter states"] == "none"
    assert costs.loc[("roberta-tiny", "FT"), "Tokens a second"] == f"8,533 ({TIMES}0.33)"
    assert costs.loc[("roberta-tiny", "FT"), "Step, median"] == f"30 ms ({TIMES}3.00)"


def test_provenance_of_each_run_is_kept(config: Config) -> None:
    write_all(config)
    run = collect(config).runs.set_index(["model", "task", "method", "recipe"]).loc[RTE].iloc[0]
    assert run["commit"] == PROVENANCE["git"]["commit"] and run["machine"] == "A CPU"
    assert run["data"] == {"rte": "ab" * 6, "benchmark": "cd" * 6} and run["wall_seconds"] == 30.0
