"""The written report: complete, self-contained, escaped, the same bytes for the same results."""

import csv
import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fakes import rename, smoke, write_all

from lorasp.claims import load_claims
from lorasp.config import Config
from lorasp.report.facts import duration
from lorasp.report.page import write_report
from lorasp.results import read_json

EVIL = '<img src=x onerror="alert(1)">&|$x_1'
GONE = "roberta-tiny qqp ft tuned seed-1"


class Page(HTMLParser):
    """Tags, ids, link targets and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.targets: set[str] = set()
        self.urls: set[str] = set()
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if tag == "a" and name == "href" and str(value).startswith("#"):
                self.targets.add(str(value)[1:])
            elif name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.urls.add(str(value))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def small(config: Config) -> Config:
    """Two tasks of one model, one of the others: every kind of thing, few of each."""
    config["experiments"][0]["tasks"] = ["sst2", "qqp"]
    config["experiments"][1]["tasks"] = ["qqp"]
    return config


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A report at a scale of stand-ins, with HTML in the name of a task and of a method."""
    before, config = Path.cwd(), small(smoke())
    config["scale"] = "mini"
    del config["no_result"]
    rename(config, "task", "sst2", EVIL.replace("/", ""), definition="sst2")
    config["methods"]["lora-half"]["label"] = EVIL
    os.chdir(tmp_path_factory.mktemp("evil"))
    write_all(config, skip=(GONE,))
    yield write_report(config).parent.resolve()
    os.chdir(before)


def test_every_file_is_written(evil: Path) -> None:
    names = {str(file.relative_to(evil)) for file in evil.rglob("[!.]*") if file.is_file()}
    tables = ("table1", "table2", "table3", "profile", "peaks", "claims", "audit")
    tables += ("ranking", "ranking-over-all", "improvement", "methods-costs")
    figures = ("figure2", "parameters", "file", "memory", "time", "seeds", "profile", "loss")
    figures += ("ranking", "improvement")
    assert names == {
        "report.html",
        "report.md",
        "results.json",
        "verdicts.json",
        *(f"tables/{name}.{kind}" for name in tables for kind in ("csv", "md", "tex")),
        *(f"figures/{name}.{kind}" for name in figures for kind in ("svg", "png")),
        *(f"tables/{name}.csv" for name in ("cells", "runs", "scores")),
    }


def test_html_in_a_name_stays_text(evil: Path) -> None:
    text = (evil / "report.html").read_text()
    page = Page(text)
    assert "img" not in page.tags
    assert EVIL in page.words  # as a heading, and in the drawings as text
    assert "<img" not in (evil / "report.md").read_text()
    assert "<img" not in (evil / "tables" / "table1.md").read_text()


def test_the_page_asks_nobody_for_anything(evil: Path) -> None:
    page = Page((evil / "report.html").read_text())
    outside = {url for url in page.urls if not url.startswith(("#", "data:"))}
    sources = {"2403.08822", *(entry["arxiv"] for entry in load_claims()["references"].values())}
    assert outside == {f"https://arxiv.org/abs/{arxiv}" for arxiv in sources}
    text = (evil / "report.html").read_text()
    assert "@import" not in text and "url(http" not in text


def test_ids_are_unique_and_every_link_leads_somewhere(evil: Path) -> None:
    page = Page((evil / "report.html").read_text())
    assert len(page.ids) == len(set(page.ids))
    assert page.targets <= set(page.ids)
    assert "runs-roberta-tiny-qqp-lora-sp-stated" in page.targets


def test_a_missing_run_is_told(evil: Path) -> None:
    document = read_json(evil / "results.json", "report")
    assert (document["summary"]["not_run"], document["summary"]["planned"]) == (1, 48)
    missing = [run for run in document["runs"] if run["status"] == "not run"]
    assert [run["folder"] for run in missing] == ["results/mini/roberta-tiny/qqp/ft/tuned/seed-1"]
    page = Page((evil / "report.html").read_text())
    assert "47 of 48" in page.words and missing[0]["folder"] in page.words


def test_stand_ins_are_called_stand_ins(evil: Path) -> None:
    words = " ".join(Page((evil / "report.html").read_text()).words)
    assert "roberta-tiny stands for roberta-base" in words and "not comparable" in words
    assert "no score on this page is a result" not in words


def test_drawings_are_valid_svg_with_text_and_the_pages_colour(evil: Path) -> None:
    for file in (evil / "figures").glob("*.svg"):
        ET.parse(file)
        assert "currentColor" in file.read_text() and "<script" not in file.read_text()
    labels = ET.parse(evil / "figures" / "figure2.svg").iter("{http://www.w3.org/2000/svg}text")
    assert EVIL in {label.text for label in labels}


def test_tables_agree_between_formats(evil: Path) -> None:
    with (evil / "tables" / "table2.csv").open() as file:
        rows = list(csv.reader(file))
    markdown = (evil / "tables" / "table2.md").read_text()
    latex = (evil / "tables" / "table2.tex").read_text()
    assert r"\toprule" in latex and r"\bottomrule" in latex
    assert len(latex.splitlines()) - 6 == len(rows) - 1
    for cell in rows[-1][2:]:
        assert cell in markdown and cell.replace("±", r"$\pm$").replace("·", r"$\cdot$") in latex


def test_the_same_results_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(smoke())
    config["experiments"] = config["experiments"][2:3]
    config["profile"]["cells"] = config["profile"]["cells"][1:2]
    monkeypatch.chdir(tmp_path)
    write_all(config)
    first = write_report(config, Path("one")).parent
    second = write_report(config, Path("two")).parent
    files = sorted(file.relative_to(first) for file in first.rglob("*.*"))
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file
    page = (first / "report.html").read_text()
    assert "no score on this page is a result" in page and 'class="no-result"' in page
    assert "smoke run: not a result" in (first / "figures" / "figure2.svg").read_text()


def test_one_method_has_no_ranking_figure_and_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(smoke())
    config["experiments"], config["profile"]["cells"] = config["experiments"][:1], []
    config["experiments"][0]["methods"] = ["lora"]
    config["verdicts"]["recipe"] = config["experiments"][0]["recipes"][0]
    monkeypatch.chdir(tmp_path)
    write_all(config)
    folder = write_report(config).parent
    for kind in ("html", "md"):
        text = (folder / f"report.{kind}").read_text()
        assert "no two methods are planned on the same model and task" in text
        assert "ranking.png" not in text and "ranking-caption" not in text
    assert not (folder / "figures" / "ranking.svg").exists()


def test_a_report_of_nothing_is_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(smoke())
    config["experiments"], config["profile"]["cells"] = config["experiments"][:1], []
    monkeypatch.chdir(tmp_path)
    page = write_report(config)
    assert "0 of 20" in Page(page.read_text()).words
    document = json.loads((page.parent / "results.json").read_text())
    assert document["summary"]["first"] is None and len(document["groups"]) == 10


def test_durations_read_as_people_say_them() -> None:
    said = [duration(seconds) for seconds in (0.04, 59.96, 150, 3600, 7325)]
    assert said == ["0.0 s", "60.0 s", "2 min", "1 h 00 min", "2 h 02 min"]
