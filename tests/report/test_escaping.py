"""Text of a configuration, a result or a claim is text in every file of the report."""

import csv
import json
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fakes
import pytest
from fakes import smoke, write_all, write_audit, write_benches
from planted import plant_all

from lorasp.claims import load_claims
from lorasp.report import write_report
from lorasp.report.compare import write_comparison
from lorasp.report.formats import _is_formula, as_csv, plain

# One payload a sink: a tag, the end of a script, an attribute, links and an image of Markdown, a
# formula of a spreadsheet, a command of LaTeX, a template's braces.
EVIL = (
    '=HYPERLINK("http://evil.example","x")</script><script>alert(1)</script>'
    "<img src=x onerror=alert(1)>"
    '" onmouseover="alert(1)" x=\' [a](javascript:alert(1)) ![b](http://evil.example/b.png) '
    "[c]: http://evil.example \\input{/etc/passwd} {{7*7}} <!-- --> javascript:alert(1)"
)


class Found(HTMLParser):
    """Every tag and attribute of a page, and what stands in its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def poisoned(config: dict[str, Any]) -> dict[str, Any]:
    """The payload wherever a configuration holds free text."""
    config["verdicts"]["note"] = EVIL
    for kind in ("models", "tasks", "methods", "recipes", "datasets"):
        for entry in config[kind].values():
            for key in ("note", "source", "label", "trainable_rule", "licence"):
                if key in entry and isinstance(entry[key], str):
                    entry[key] = EVIL
            entry.setdefault("note", EVIL) if kind in ("models", "tasks") else None
    config["methods"]["lora-half"]["interpretation"] = EVIL
    for index, method in enumerate(config["methods"].values()):
        method["label"] = f"{EVIL}{index}"  # labels tell methods apart
    return config


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A report in which every text that comes from outside is the payload."""
    before, config = Path.cwd(), smoke()
    config["experiments"][0]["tasks"] = ["sst2"]
    config["experiments"] = config["experiments"][:2]
    patch = pytest.MonkeyPatch()
    provenance = {
        "lorasp": EVIL,
        "git": {"commit": EVIL, "dirty": True},
        "versions": {"torch": EVIL, EVIL: "1"},
        "python": EVIL,
        "machine": {"system": EVIL, "architecture": EVIL, "cpu": EVIL, "cores": 2, "gpus": [EVIL]},
    }
    patch.setattr(fakes, "PROVENANCE", provenance)
    os.chdir(tmp_path_factory.mktemp("escaping"))
    checks = [claim["id"] for claim in load_claims()["claims"] if "check" in claim]
    write_audit(dict.fromkeys(checks[:3], "inconsistent"), found=EVIL)
    write_all(poisoned(config))
    plant_all()
    for file in Path("results/simulated").rglob("*.json"):
        file.write_text(file.read_text().replace('"label": "', f'"label": {json.dumps(EVIL)[:-1]}'))
    write_benches()
    folder = write_report(config).parent.resolve()
    write_comparison(config, (Path("results/smoke"), Path("results/smoke")), folder / "compare")
    patch.undo()
    yield folder
    os.chdir(before)


def test_the_payload_is_there(report: Path) -> None:
    text = (report / "report.html").read_text()
    assert text.count("alert(1)") > 50
    assert "{{7*7}}" in text  # nobody renders it a second time


@pytest.mark.parametrize("name", ["report.html", "compare/compare.html"])
def test_no_tag_attribute_or_address_comes_from_a_text(report: Path, name: str) -> None:
    page = Found((report / name).read_text())
    assert not {"img", "iframe", "object", "embed", "base", "form"} & set(page.tags) - {"form"}
    assert page.tags.count("form") <= 1
    assert [pair for pair in page.attributes if pair[0].startswith("on")] == []
    addresses = [value for name, value in page.attributes if name in ("href", "src", "xlink:href")]
    allowed = re.compile(r"#|data:,$|https://arxiv\.org/abs/[0-9.]+$")
    assert [address for address in addresses if not allowed.match(address)] == []


def test_scripts_are_ours_and_data(report: Path) -> None:
    """Two scripts that the policy names by their hashes; all else is JSON, which parses."""
    text = (report / "report.html").read_text()
    page = Found(text)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy and "script-src 'unsafe-inline'" not in policy
    charts = [script for script in page.scripts if script.lstrip().startswith("{")]
    assert len(page.scripts) == len(charts) + 2 == len(re.findall("<script", text))
    for chart in charts:
        assert json.loads(chart) and "<" not in chart


def test_drawings_hold_text_alone(report: Path) -> None:
    for file in (report / "figures").glob("*.svg"):
        tags = {element.tag.rsplit("}")[-1] for element in ET.parse(file).iter()}
        assert not tags & {"script", "image", "foreignObject", "iframe"}
        attributes = [(k, v) for node in ET.parse(file).iter() for k, v in node.attrib.items()]
        assert not [pair for pair in attributes if pair[0].startswith("on")]
        links = [value for key, value in attributes if key.endswith("href")]
        assert all(link.startswith("../report.html#") for link in links)


def test_markdown_has_no_html_link_or_image_of_a_text(report: Path) -> None:
    for file in report.rglob("*.md"):
        text = file.read_text()
        assert not re.search(r"<(img|script)", text), file
        assert not re.search(r"\]\((javascript|http://evil)", text), file
        assert not re.search(r"^\s*\[c\]:", text, re.MULTILINE), file


def test_no_cell_of_a_csv_is_a_formula(report: Path) -> None:
    seen = 0
    for file in report.rglob("*.csv"):
        with file.open(newline="") as opened:
            for cell in (cell for row in list(csv.reader(opened))[1:] for cell in row):
                assert not _is_formula(cell), (file, cell)
                seen += cell.startswith("'=HYPERLINK")
    assert seen


def test_latex_runs_no_command_of_a_text(report: Path) -> None:
    for file in report.rglob("*.tex"):
        assert "\\input" not in file.read_text(), file


@pytest.mark.parametrize(
    ("cell", "formula"),
    [
        ("=1+1", True), ("@SUM(A1)", True), (" =1", True), ("\t=1", True), ("\r=1", True),
        ("+cmd|' /C calc'!A0", True), ("-2+3+cmd|' /C calc'!D2", True), ("-SUM(A1)", True),
        ("-1.5", False), ("+0.3 ± 0.1 (5)", False), ("-0.2 [-0.5, 0.1]", False), ("a=b", False),
        ("LoRA, r/2", False), (-1.5, False), (None, False),
    ],
)  # fmt: skip
def test_what_a_spreadsheet_would_compute(cell: Any, formula: bool) -> None:
    assert _is_formula(cell) == formula


def test_numbers_of_a_csv_stay_numbers() -> None:
    import pandas as pd

    frame = pd.DataFrame({"a": [-1.5, 2.0], "b": ["=1", "x"]})
    assert as_csv(frame) == "a,b\n-1.5,'=1\n2.0,x\n"


def test_text_of_markdown() -> None:
    assert plain("a [0.1, 0.9] b [c] (d)") == "a [0.1, 0.9] b [c] (d)"
    assert plain("[a](b) [a][b] ![a](b)") == r"[a]\(b) [a]\[b] ![a]\(b)"
    assert plain("<b> a|b\nc") == r"&lt;b&gt; a\|b c"
