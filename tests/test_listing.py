"""`lorasp methods`: what each method trains on roberta-base, against formulas that know no PEFT."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from lorasp import listing as module
from lorasp.cli import main
from lorasp.config import load_config
from lorasp.listing import as_text, listing
from lorasp.methods import table
from lorasp.profiling import simulate
from lorasp.profiling.simulations import ask

ROOT = Path(__file__).parents[1]
# roberta-base: 12 layers with query and value, 768 x 768; a head of a dense layer and two labels
LAYERS, WIDTH, INNER = 12, 768, 3072
MATRICES = 2 * LAYERS
HEAD = WIDTH * WIDTH + WIDTH + 2 * WIDTH + 2
BASE = 124_647_170
R = 16
LORA = MATRICES * R * 2 * WIDTH
NORMS = 2 * LAYERS + 1  # two in each layer, and that of the embeddings
COUNTS = {
    "base": 0,
    "ft": BASE,
    "lora": LORA + HEAD,
    "lora-half": LORA // 2 + HEAD,
    "lora-sp": LORA // 2 + HEAD,
    "lora-sp-d125": LORA // 8 + HEAD,
    "lora-sp-step": LORA + HEAD,
    "lora-fa": MATRICES * R * WIDTH + HEAD,
    "lora-fa-optimizer": MATRICES * R * WIDTH + HEAD,
    "lora-sp-depth": LORA // 2 + HEAD,
    "lora-sp-nf4-residual": LORA // 2 + HEAD,
    "lora-mini": MATRICES * R * 2 * round(WIDTH / 20) + HEAD,
    "dynamic-lora": LORA + HEAD,
    "dora": LORA + MATRICES * WIDTH + HEAD,
    "pissa": LORA + HEAD,
    "mica": LORA // 2 + HEAD,
    "adalora": MATRICES * 24 * (2 * WIDTH + 1) + HEAD,
    "vera": MATRICES * (256 + WIDTH) + HEAD,
    "pvera": MATRICES * (2 * 256 + WIDTH) + HEAD,
    "randlora": MATRICES * (R + WIDTH) * ceil(WIDTH / R) + HEAD,
    "shira": LORA + HEAD,
    "miss": MATRICES * R * WIDTH + HEAD,
    "loha": MATRICES * 2 * 8 * 2 * WIDTH + HEAD,
    # 768 = 24 x 32 both ways: a factor of 24 x 24, and one of 32 x 32 of rank 4
    "lokr": MATRICES * (24 * 24 + 4 * (32 + 32)) + HEAD,
    "oft": MATRICES * (WIDTH // 32) * (32 * 31 // 2) + HEAD,
    "boft": MATRICES * (WIDTH * 8 + WIDTH) + HEAD,
    "hra": MATRICES * R * WIDTH + HEAD,
    "psoft": MATRICES * (32 * 31 // 2 + 2 * 32) + HEAD,
    # keys and values, and the input of the second feed-forward matrix and the attention's output
    "ia3": LAYERS * (2 * WIDTH + WIDTH + INNER) + HEAD,
    "fourierft": MATRICES * 1000 + HEAD,
    "c3a": MATRICES * WIDTH * WIDTH // 32 + HEAD,
    "road": MATRICES * WIDTH + HEAD,
    "delora": LORA + MATRICES + HEAD,
    "gralora": LORA + HEAD,
    "hira": LORA + HEAD,
    # a router for each matrix, and two B for the queries and two for the values
    "lily": MATRICES * R * (WIDTH + 2) + 2 * 2 * R * WIDTH + HEAD,
    "glora": MATRICES * (2 * 8 * 2 * WIDTH + 8 * (WIDTH + 1) + 2) + HEAD,
    "vblora": 90 * 32 + MATRICES * 4 * 2 * WIDTH // 32 * 90 + HEAD,
    "unilora": 1024 + HEAD,
    "tinylora": MATRICES * 64 + HEAD,
    "osf": MATRICES * 384 * (2 * WIDTH + 1) + HEAD,
    "supertuning": MATRICES * round(0.01 * WIDTH * WIDTH) + HEAD,
    "beft": MATRICES * WIDTH + HEAD,
    "ln-tuning": NORMS * 2 * WIDTH + HEAD,
    "prompt-tuning": 20 * WIDTH + HEAD,
    "prefix-tuning": 20 * 2 * LAYERS * WIDTH + HEAD,
    "cartridge": 19 * 2 * LAYERS * WIDTH + HEAD,
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the cache of simulated steps is there


@pytest.fixture(scope="module")
def rows() -> Iterator[dict[str, dict[str, Any]]]:
    methods = {name: table()[name] for name in [*COUNTS, "shadow"]}
    yield {row["name"]: row for row in listing({"methods": methods})}


def _told_to_end(question: module.Question) -> dict[str, Any]:
    """In a worker: whether SIGTERM ends a process that catches whatever a handler raises."""
    if pid := os.fork():
        status = os.waitpid(pid, 0)[1]
        return {"worker": os.getppid(), "signal": os.WIFSIGNALED(status) and os.WTERMSIG(status)}
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        os._exit(0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the listing has no workers")
def test_a_worker_ends_by_sigterm_though_the_command_s_handler_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_answer", _told_to_end)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    question = module.Question("roberta-base", "lora", {"methods": table()}, False, False)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        found = module._answers([question])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == [{"worker": os.getpid(), "signal": signal.SIGTERM}]


def test_counts_are_those_of_closed_forms(rows: dict[str, dict[str, Any]]) -> None:
    found = {
        name: row["parameters"] and row["parameters"]["trainable"] for name, row in rows.items()
    }
    assert {name: found[name] for name in COUNTS} == COUNTS


def test_head_and_share(rows: dict[str, dict[str, Any]]) -> None:
    found = rows["lora-sp"]["parameters"]
    assert found == {"trainable": LORA // 2 + HEAD, "head": HEAD, "share": found["share"]}
    assert found["share"] == pytest.approx((LORA // 2 + HEAD) / BASE)
    assert rows["base"]["parameters"] == {"trainable": 0, "head": 0, "share": 0}


def test_a_method_for_other_models_says_so(rows: dict[str, dict[str, Any]]) -> None:
    row = rows["shadow"]
    assert row["parameters"] is None and row["applies_to"] == ["causal"]
    assert row["why"].startswith("method shadow does not apply to encoder models")


def test_text_has_a_line_for_each_method(rows: dict[str, dict[str, Any]]) -> None:
    lines = as_text(list(rows.values())).splitlines()
    first = {line.split()[0]: line for line in lines if line and line[0] != " "}
    assert set(rows) <= set(first)
    assert f"{COUNTS['dora']:,}" in first["dora"] and "0.963%" in first["dora"]
    told = "\n".join(lines)
    assert "density=0.5" in told and "an interpretation: The abstract" in told
    assert "causal alone: its shadow network" in told


def test_no_head_is_spoken_of_where_there_is_none(
    rows: dict[str, dict[str, Any]],
) -> None:
    headless = dict(rows["dora"], parameters={"trainable": 1, "head": 0, "share": 0.1})
    assert "classification head" in as_text([rows["dora"]])
    assert "trains r (in + out) + out per adapted matrix\n" in as_text([headless])


def test_it_says_what_it_is_about_and_no_warning_of_pefts(
    capfd: pytest.CaptureFixture[str],
) -> None:
    methods = {name: table()[name] for name in ("lora", "beft")}
    listing({"methods": methods}, model="t5-small")  # whose layers have no bias
    said = capfd.readouterr().err
    assert "counting what 2 methods train on t5-small: half a minute" in said
    assert "UserWarning" not in said


def test_cost_is_that_of_the_simulated_step_beside_loras() -> None:
    methods = {name: table()[name] for name in ("base", "lora", "lora-sp", "waveft")}
    found = {row["name"]: row for row in listing({"methods": methods}, cost=True)}
    lora, sp = found["lora"]["cost"], found["lora-sp"]["cost"]
    assert lora["peak_bytes_to_lora"] == lora["flops_to_lora"] == 1
    assert sp["peak_bytes_to_lora"] == sp["peak_bytes"] / lora["peak_bytes"] < 1
    assert found["base"]["cost"] is None and found["base"]["why"] is None
    assert found["waveft"]["parameters"]["trainable"] == COUNTS["fourierft"]
    assert "looks at the values of weights" in found["waveft"]["why"]
    text = as_text(list(found.values()))
    assert f"{sp['peak_bytes_to_lora']:.2f}" in text and "operations" in text


def test_an_unknown_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--model", "gpt-9"]) == 2
    assert "model 'gpt-9' is unknown; known are" in capsys.readouterr().err


def test_the_command_lists_a_configurations_methods_as_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    smoke = ROOT / "config" / "smoke.yaml"
    few = {name: load_config(smoke)["methods"][name] for name in ("base", "lora-sp")}
    monkeypatch.setattr("lorasp.commands.load_config", lambda _: {"methods": few})
    assert main(["methods", "--json", "--config", str(smoke)]) == 0
    base, sp = json.loads(capsys.readouterr().out)
    assert {"name", "family", "label", "source", "settings", "trainable_rule"} <= set(sp)
    assert sp["settings"]["rank"] == 4 and base["settings"] == {}
    assert sp["parameters"]["trainable"] == LORA // 8 + HEAD


@pytest.mark.parametrize(("terminal", "hidden"), [(False, True), (True, None)])
def test_rows_keep_their_order_and_a_bar_is_for_a_terminal(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, hidden: bool | None
) -> None:
    bars: list[Any] = []

    def bar(rows: Any, disable: bool | None, **others: Any) -> Any:
        bars.append(disable)
        return rows

    monkeypatch.setattr(module, "tqdm", bar)
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: terminal)
    names = ["lora", "dora", "shira", "ia3"]  # the third is begun first
    found = listing({"methods": {name: table()[name] for name in names}})
    assert [row["name"] for row in found] == names and bars == [hidden]
    assert [row["parameters"]["trainable"] for row in found] == [COUNTS[name] for name in names]


def test_a_model_is_counted_once_and_its_total_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    usual = simulate.skeleton

    def skeleton(resolved: dict[str, Any], folder: Path | None) -> Any:
        made.append(resolved["model"]["name"])
        return usual(resolved, folder)

    monkeypatch.setattr(simulate, "skeleton", skeleton)
    monkeypatch.setattr(module, "TOTALS", {})
    for name in ("lora", "dora"):
        assert module.counted(*ask("roberta-base", name, (1, 8)))["trainable"] == COUNTS[name]
    module.counted(*ask("t5-small", "lora", (1, 8)))
    # each with its adapter, and once without
    assert made == ["roberta-base"] * 3 + ["t5-small"] * 2
    assert sorted(module.TOTALS.values())[1] == BASE


def test_values_are_drawn_where_the_method_looks() -> None:
    resolved, folder = ask("roberta-base", "shira", (1, 8))
    network = module._with_values(resolved, folder)
    drawn = {name for name, weight in network.named_parameters() if weight.any()}
    assert len(drawn) == 2 * MATRICES  # with their biases
    assert all(name.rsplit(".", 2)[1] in ("query", "value") for name in drawn)
