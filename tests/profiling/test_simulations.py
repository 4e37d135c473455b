"""Which steps are simulated, what the command answers, and when the cache answers for it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lorasp.cli import main
from lorasp.config import load_config
from lorasp.errors import UsageError
from lorasp.profiling import simulate as simulator
from lorasp.profiling import simulations
from lorasp.profiling.cells import cells_of, planned, resolve_cell
from lorasp.public_models import public_models
from lorasp.results import read_json

ROOT = Path(__file__).parents[2]
CONFIG = load_config(ROOT / "config" / "simulated.yaml")
PAPER = ("roberta-base", "roberta-large", "t5-base", "t5-large", "llama-7b", "llama-13b")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORASP_SERVER", raising=False)
    return tmp_path


def test_every_cell_of_the_papers_tables_is_planned() -> None:
    base = {"quantize": "none", "recompute": "none"}
    shapes = {cell["model"]: cell for cell in CONFIG["profile"]["cells"]}
    for model in PAPER:
        shape = {key: shapes[model][key] for key in ("batch", "length")}
        for method in ("ft", "lora", "lora-half", "lora-sp", "lora-sp-init"):
            assert shape | base in cells_of(CONFIG, model, method), (model, method)


def test_every_reading_of_half_and_every_way_to_a_small_card_is_planned() -> None:
    for model in ("roberta-base", "llama-7b"):
        settings = [
            resolve_cell(CONFIG, one, method, cells_of(CONFIG, one, method)[0])["method"][
                "settings"
            ]
            for one, method in planned(CONFIG)
            if one == model and method.startswith("lora-sp")
        ]
        readings = {(s["selection"], s.get("unselected", "zero")) for s in settings}
        assert readings >= {(s, u) for s in ("element", "rank") for u in ("zero", "init")}
        assert {"matrix", "depth"} <= {selection for selection, _ in readings}
    for model in ("llama-7b", "llama-13b"):
        ways = {(c["quantize"], c["recompute"]) for c in cells_of(CONFIG, model, "lora-sp")}
        policies = ("none", "full", "selective")
        assert ways >= {(quantize, r) for quantize in ("none", "nf4") for r in policies}
        assert ways >= {("int8", "none"), ("int8", "full")}


def test_the_cells_of_a_group_are_all_combinations_without_repeats() -> None:
    groups = [
        {
            "models": ["t5-base"],
            "methods": ["lora"],
            "length": [8, 16],
            "recompute": ["full", "none"],
        },
        {"models": ["t5-base"], "methods": ["lora", "ft"], "batch": [2], "length": [8]},
        {"models": ["t5-base"], "methods": ["lora"], "length": [8], "recompute": ["full"]},
    ]
    config = {**CONFIG, "simulate": groups}
    found = [tuple(cell.values()) for cell in cells_of(config, "t5-base", "lora")]
    assert found == [
        (64, 8, "none", "full"),
        (64, 8, "none", "none"),
        (64, 16, "none", "full"),
        (64, 16, "none", "none"),
        (2, 8, "none", "none"),
    ]
    assert planned(config) == [("t5-base", "lora"), ("t5-base", "ft")]
    with pytest.raises(UsageError, match="plans no t5-base lora-sp; planned are t5-base lora, t5"):
        cells_of(config, "t5-base", "lora-sp")


def test_the_paper_scale_is_simulated_as_it_would_be_trained() -> None:
    cell = {"batch": 1, "length": 512, "quantize": "nf4", "recompute": "full"}
    resolved = resolve_cell(CONFIG, "llama-13b", "lora-sp", cell)
    assert resolved["runtime"]["weights"] == resolved["runtime"]["precision"] == "bf16"
    assert resolved["method"]["settings"]["quantize"] == "nf4"
    assert resolved["method"]["settings"]["recompute"] == "full"
    public = public_models()["llama-13b"]
    assert resolved["model"]["targets"] == public["targets"] == ["q_proj", "v_proj"]
    assert all(
        CONFIG["models"][name]["targets"] == public_models()[name]["targets"] for name in PAPER
    )


def small(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    """The answer for t5-small, the smallest public model, as JSON."""
    command = ["simulate", "--model", "t5-small", "--method", "lora-sp", "--batch", "2"]
    assert main([*command, "--length", "16", "--json", *more]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_the_command_answers_in_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = small(capsys, "--dtype", "float32", "--set", "rank=8")
    assert set(answer["phases"]) == {"forward", "backward", "optimizer"}
    for peak in answer["phases"].values():
        assert peak["peak_bytes"] == sum(peak["kinds"].values()) <= answer["peak_bytes"]
    assert answer["flops"] == sum(answer["flops_by_phase"].values()) > 0
    # rank 8, half of the entries, q and v of 6 encoder and 2 x 6 decoder attentions of 512 x 512
    assert answer["trainable_parameters"] == 36 * 8 * (512 + 512) // 2
    assert answer["settings"]["rank"] == 8 and answer["runtime"]["weights"] == "fp32"
    held = small(capsys, "--dtype", "bfloat16", "--set", "rank=8")["rest"]
    assert held["weights"] < 0.51 * answer["rest"]["weights"]


def test_the_cache_answers_only_for_the_same_step(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = small(capsys)
    (kept,) = Path("results/simulated/cache").glob("*.json")
    assert read_json(kept, "step")["step"]["peak_bytes"] == first["peak_bytes"]
    runs = []
    monkeypatch.setattr(simulator, "simulate", lambda *asked: runs.append(asked) or first_step)
    first_step = read_json(kept, "step")["step"]
    assert small(capsys) == first and not runs
    for change in (["--set", "density=0.25"], ["--dtype", "float32"], ["--recompute", "full"]):
        small(capsys, *change)
    assert len(runs) == 3
    monkeypatch.setattr(simulations, "_code", lambda: "another")
    small(capsys)
    assert len(runs) == 4
    monkeypatch.setattr(simulations, "libraries", lambda: {"torch": "another"})
    small(capsys)
    assert len(runs) == 5


def test_a_cache_that_cannot_be_used_is_none(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = small(capsys)
    (kept,) = Path("results/simulated/cache").glob("*.json")
    kept.write_text("{half")
    assert small(capsys) == first
    assert read_json(kept, "step")["step"]["peak_bytes"] == first["peak_bytes"]
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "results").write_text("a file where a folder would be")
    monkeypatch.chdir(elsewhere)
    assert main(["simulate", "--model", "t5-small", "--method", "lora", "--length", "8"]) == 0
    shown = capsys.readouterr()
    assert "parameters are trained" in shown.out and "not kept for the next time" in shown.err


def test_the_configuration_says_the_device_and_dtype_the_formats(place: Path) -> None:
    config = load_config(ROOT / "config" / "smoke.yaml")
    resolved, _ = simulations.ask("t5-small", "lora", (1, 8), "float16", config=config)
    assert resolved["runtime"] == {"device": "cpu", "precision": "fp32", "weights": "fp16"}
    resolved, _ = simulations.ask("t5-small", "lora", (1, 8), config=config)
    assert resolved["runtime"]["precision"] == "fp32" and "weights" not in resolved["runtime"]


def test_planned_steps_are_written_to_one_file(place: Path, capsys: Any) -> None:
    for name in ("simulated.yaml", "paper.yaml"):
        shutil.copy(ROOT / "config" / name, place)
    written = place / "tiny.yaml"
    written.write_text(
        "extends: simulated.yaml\n"
        "scale: tiny\n"
        "models: {t5-small: {architecture: seq2seq, targets: [q], source: {kind: hub, id: a/b, "
        f"revision: {'a' * 40}}}}}}}\n"
        "simulate: [{models: [t5-small], methods: [lora], batch: [1], length: [8, 16]}]\n"
    )
    command = ["simulate", "--config", str(written), "--planned", "--model", "t5-small"]
    assert main([*command, "--method", "lora"]) == 0
    assert capsys.readouterr().out == "results/tiny/t5-small/lora.json\n"
    result = read_json(Path("results/tiny/t5-small/lora.json"), "simulation")
    assert [cell["length"] for cell in result["cells"]] == [8, 16]
    assert result["label"] == "LoRA" and result["settings"]["rank"] == 16
    one, two = (cell["kept"]["activations"] for cell in result["cells"])
    assert one < two < 3 * one


def test_the_command_answers_for_a_person(place: Path, capsys: Any) -> None:
    assert main(["simulate", "--model", "t5-small", "--method", "lora", "--length", "16"]) == 0
    shown = capsys.readouterr().out
    assert "t5-small lora, batch 1 x 16, weights fp32, autocast bf16" in shown
    order = [
        line.split()[0] for line in shown.splitlines() if line.startswith(("for", "back", "opt"))
    ]
    assert order == ["forward", "backward", "optimizer"]
    assert "589,824 of 61,096,448 parameters are trained" in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model", "gpt-9"], "model 'gpt-9' is unknown; known are llama-13b, llama-2-13b"),
        (["--method", "doora"], "method 'doora' is unknown; known are dora, "),
        (["--method", "base"], "method base trains nothing"),
        (["--set", "quantize=fp4"], "settings.quantize is 'fp4'; allowed are none, nf4, int8"),
        (["--set", "recompute=some"], "settings.recompute is 'some'; allowed are none, full"),
        (["--set", "rnak=8"], "settings has no rnak"),
        (["--batch", "0"], "--batch and --length must be at least 1"),
        (["--planned"], "--planned needs --config"),
        (
            ["--model", "roberta-base", "--length", "513"],
            "roberta-base has positions for at most 512",
        ),
        (["--model", "llama-7b", "--length", "2049"], "llama-7b has positions for at most 2048"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(
    place: Path, capsys: Any, change: list[str], message: str
) -> None:
    assert main(["simulate", "--model", "t5-small", "--method", "lora", *change]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and message in shown.err
