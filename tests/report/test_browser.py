"""The page in a real browser: sorting, filters, links, charts, keyboard, dark, print, no script."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import rename, smoke, write_all, write_audit, write_benches
from planted import plant_all
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright

from lorasp.claims import load_claims
from lorasp.report import write_report
from lorasp.results import read_json

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
EVIL = '</script><img src=x onerror="alert(1)">{{7*7}}'
ROWS = "#claims-table tbody.rows tr"
# The first chart compiles what all need, which takes a busy machine more than the usual 5 seconds.
expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A report of stand-ins with HTML in the name of a task, of a method and of a finding."""
    before, config = Path.cwd(), smoke()
    config["scale"] = "mini"
    del config["no_result"]
    config["experiments"][0]["tasks"] = ["sst2", "qqp"]
    config["experiments"][1]["tasks"] = ["qqp"]
    rename(config, "task", "sst2", EVIL.replace("/", ""), definition="sst2")
    config["methods"]["lora-half"]["label"] = EVIL
    os.chdir(tmp_path_factory.mktemp("browser"))
    checks = [claim["id"] for claim in load_claims()["claims"] if "check" in claim]
    kinds = ("inconsistent", "reproduced", "not comparable")
    write_audit(dict(zip(checks[:3], kinds, strict=True)), found=f"computed {EVIL}")
    write_all(config)
    plant_all()
    write_benches()
    yield write_report(config).resolve()
    os.chdir(before)


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        (pytest.fail if "CI" in os.environ else pytest.skip)(f"none of {', '.join(NAMES)} is here")
    launched = playwright.chromium.launch(executable_path=found, args=FLAGS)
    yield launched
    launched.close()


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """The page, opened; it must say nothing on the console and ask for nothing but itself."""
    opened = browser.new_page(viewport={"width": 1400, "height": 900})
    said: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("dialog", lambda dialog: said.append(dialog.message))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(report.as_uri())
    yield opened
    outside = [url for url in asked if not url.startswith(("file:", "data:"))]
    opened.close()
    assert said == [] and outside == []


def unfold(page: Page) -> None:
    """Open what the script has folded, as it does before printing."""
    page.evaluate("dispatchEvent(new Event('beforeprint'))")


def column(page: Page, number: int) -> list[str]:
    """The cells of a column of the first paper's claims, as they stand."""
    script = "(rows, k) => rows.map(row => row.cells[k].dataset.sort ?? row.cells[k].innerText)"
    first = "#claims-table tbody.rows >> nth=0"
    return list(page.locator(first).locator("tr").evaluate_all(script, number))


def test_a_heading_sorts_up_and_down(page: Page) -> None:
    heading = page.locator("#claims-table thead th", has_text="Verdict")
    heading.get_by_role("button").click()
    expect(heading).to_have_attribute("aria-sort", "ascending")
    up = [int(value) for value in column(page, 2)]
    assert up == sorted(up) and len(set(up)) > 2
    heading.get_by_role("button").click()
    expect(heading).to_have_attribute("aria-sort", "descending")
    assert [int(value) for value in column(page, 2)] == up[::-1]
    estimates = page.locator("#claims-table thead th", has_text="Estimate")
    estimates.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") is None
    values = column(page, 4)
    known = [float(value) for value in values if value]
    assert known == sorted(known) and len(set(known)) > 2
    assert "" not in values[: len(known)]  # what has no estimate comes last


def test_filters_show_exactly_what_they_say(page: Page, report: Path) -> None:
    document = read_json(report.parent / "verdicts.json", "verdicts")
    total = len(document["verdicts"])
    for verdict in ("inconsistent", "inconclusive", "not run"):
        page.get_by_label("Verdict").select_option(verdict)
        wanted = {v["id"] for v in document["verdicts"] if v["verdict"] == verdict}
        shown = page.locator(f"{ROWS}:visible th code").all_inner_texts()
        assert wanted and set(shown) == wanted
        expect(page.locator("output")).to_have_text(f"{len(shown)} of {total} claims")
    page.get_by_role("button", name="Show all").click()
    page.get_by_label("Kind").select_option("relation")
    wanted = {v["id"] for v in document["verdicts"] if v["kind"] == "relation"}
    assert set(page.locator(f"{ROWS}:visible th code").all_inner_texts()) == wanted
    page.get_by_role("button", name="Show all").click()
    expect(page.locator(f"{ROWS}:visible")).to_have_count(total)


def test_search_and_chips(page: Page) -> None:
    page.get_by_label("Search").fill("table1.roberta-large.lora-sp.MRPC")
    expect(page.locator(f"{ROWS}:visible")).to_have_count(1)
    page.locator(".chips a", has_text="inconsistent").click()
    expect(page.get_by_label("Verdict")).to_have_value("inconsistent")
    expect(page.get_by_label("Search")).to_have_value("")
    assert set(page.locator(f"{ROWS}:visible .badge").all_inner_texts()) == {"≠ inconsistent"}
    assert page.locator("#claims").evaluate("e => e.getBoundingClientRect().top") < 900


def test_a_deep_link_opens_its_claim(browser: Browser, page: Page, report: Path) -> None:
    document = read_json(report.parent / "verdicts.json", "verdicts")
    name = next(v["id"] for v in document["verdicts"] if "test" in v and v["kind"] == "relation")
    deep = browser.new_page()
    deep.goto(f"{report.as_uri()}#claim-{name}")
    row = deep.locator(f"[id='claim-{name}']")
    expect(row).to_be_in_viewport()
    expect(row.locator("dl.test")).to_be_visible()
    deep.close()
    page.get_by_label("Search").fill("nothing has these words")
    expect(page.locator(f"{ROWS}:visible")).to_have_count(0)
    page.evaluate(f"location.hash = 'claim-{name}'")
    expect(page.locator(f"[id='claim-{name}']")).to_be_in_viewport()


def test_a_cell_leads_to_its_runs_and_a_badge_to_its_claim(page: Page) -> None:
    cell = page.locator("#table1 td.score a").first
    target = str(cell.get_attribute("href"))[1:]
    cell.click()
    assert page.evaluate("location.hash") == f"#{target}"
    expect(page.locator(f"[id='{target}']")).to_be_in_viewport()
    badge = page.locator("#table1 tr.verdict a.badge").first
    badge.click()
    row = page.locator(f"[id='{str(badge.get_attribute('href'))[1:]}']")
    expect(row).to_be_in_viewport()


def test_what_is_seldom_read_is_folded_but_in_print(page: Page) -> None:
    folds = page.locator("details.fold")
    opened = page.locator("details.fold[open]")
    assert folds.count() > 5
    expect(opened).to_have_count(0)
    unfold(page)
    expect(opened).to_have_count(folds.count())
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    expect(opened).to_have_count(0)


def test_print_has_every_claim_and_leaves_the_page_as_it_was(page: Page, report: Path) -> None:
    document = read_json(report.parent / "verdicts.json", "verdicts")
    page.get_by_label("Verdict").select_option("inconsistent")
    page.locator("details.fold").first.evaluate("fold => (fold.open = true)")
    shown = page.locator(f"{ROWS}:visible").count()
    headings = page.locator("#claims-table tbody.model")
    kept = page.locator("#claims-table tbody.model:visible").count()
    assert 0 < shown < len(document["verdicts"]) and kept < headings.count()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    expect(page.locator(f"{ROWS}:visible")).to_have_count(len(document["verdicts"]))
    expect(page.locator("#claims-table tbody.model:visible")).to_have_count(headings.count())
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    expect(page.locator(f"{ROWS}:visible")).to_have_count(shown)
    expect(page.locator("#claims-table tbody.model:visible")).to_have_count(kept)
    expect(page.locator("details.fold[open]")).to_have_count(1)
    expect(page.locator("details.fold").first).to_have_attribute("open", "")


def test_at_first_the_claims_are_those_that_are_judged(page: Page, report: Path) -> None:
    document = read_json(report.parent / "verdicts.json", "verdicts")
    judged = {v["id"] for v in document["verdicts"] if v["verdict"] != "not run"}
    assert set(page.locator(f"{ROWS}:visible th code").all_inner_texts()) == judged
    assert 0 < len(judged) < len(document["verdicts"])


@pytest.mark.parametrize("width", [360, 700, 1000, 1400])
def test_no_heading_lies_under_the_menu(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    for name in ("use", "ranking-of-methods", "claims", "costs", "open"):
        page.evaluate(f"location.hash = '{name}'")
        page.wait_for_timeout(50)
        top, menu = page.evaluate(
            f"[document.querySelector('#{name} h2').getBoundingClientRect().top, "
            "document.querySelector('nav').getBoundingClientRect().bottom]"
        )
        assert max(menu, 0) <= top < 450, (name, top, menu)


def test_charts_are_live_and_lead_to_runs(page: Page) -> None:
    unfold(page)
    drawings = page.locator("[data-chart]")
    for index in range(drawings.count()):
        drawings.nth(index).scroll_into_view_if_needed()
        expect(drawings.nth(index).locator(".vega-embed svg")).to_be_visible()
    dot = page.locator("#seeds .vega-embed path[aria-roledescription=circle]").first
    dot.scroll_into_view_if_needed()
    dot.hover()
    tooltip = page.locator("#vg-tooltip-element")
    expect(tooltip).to_contain_text("score")
    dot.click()
    page.wait_for_function("location.hash.startsWith('#runs-')")
    target = page.evaluate("location.hash.slice(1)")
    expect(page.locator(f"[id='{target}']")).to_be_in_viewport()


def test_html_stays_text(page: Page) -> None:
    unfold(page)
    for drawing in page.locator("[data-chart]").all():
        drawing.scroll_into_view_if_needed()
        expect(drawing.locator(".vega-embed svg")).to_be_visible()
    page.locator(".finding summary").first.click()
    assert page.locator("img").count() == 0
    assert page.locator(f"text={EVIL}").count() > 1
    assert page.locator("#seeds svg text", has_text="onerror").count() > 0


def test_the_keyboard_is_enough(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.locator("#claims-table thead button").first.focus()
    page.keyboard.press("Enter")
    heading = page.locator("#claims-table thead th").first
    expect(heading).to_have_attribute("aria-sort", "ascending")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.get_by_label("Verdict").focus()
    # letters would be a race: a slow machine reads a pause between two as a new word
    for _ in ("reproduced", "not reproduced", "inconclusive", "inconsistent"):
        page.keyboard.press("ArrowDown")
    expect(page.get_by_label("Verdict")).to_have_value("inconsistent")
    summary = page.locator(".finding summary").first
    summary.focus()
    page.keyboard.press("Space")
    expect(page.locator(".finding").first).to_have_attribute("open", "")


CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (colour) => {
    const [r, g, b] = channels(colour).map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const under = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)") return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = "h1, h2, p, td, th, small, a, dt, dd, summary, figcaption, .badge, select, button";
  const shown = [...document.querySelectorAll(texts)].filter((node) => node.checkVisibility());
  return shown.map((node) => {
    const [a, b] = [light(getComputedStyle(node).color), light(under(node))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), node.className + " " + node.textContent.trim().slice(0, 30)];
  }).filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_in_both_schemes(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    assert page.evaluate(CONTRASTS) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(18, 21, 24)") == (scheme == "dark")
    axis = page.locator("#seeds svg text").first.evaluate("e => getComputedStyle(e).fill")
    ink = page.locator("body").evaluate("e => getComputedStyle(e).color")
    assert axis == ink


def test_nothing_is_cut_off_in_print_or_on_a_phone(page: Page) -> None:
    wide = "() => [...document.querySelectorAll('table, svg')].filter(e => e.checkVisibility() && "
    wide += "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.closest('[id]').id)"
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 703, "height": 1000})  # A4 less the margins
    assert page.evaluate(wide) == []
    expect(page.locator("nav")).to_be_hidden()
    expect(page.locator("form.filters")).to_be_hidden()
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400  # tables scroll inside


def test_without_script_everything_is_there(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    document = read_json(report.parent / "verdicts.json", "verdicts")
    expect(page.locator(f"{ROWS}:visible")).to_have_count(len(document["verdicts"]))
    expect(page.locator("form.filters")).to_be_hidden()
    figures = len(list((report.parent / "figures").glob("*.svg")))
    expect(page.locator("figure svg:visible")).to_have_count(figures)
    links = page.locator("#seeds svg a").all()
    assert links and all("#runs-" in str(link.get_attribute("xlink:href")) for link in links)
    context.close()
