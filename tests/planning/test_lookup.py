"""What the workflow and the report read of a plan."""

from pathlib import Path
from typing import Any

import pytest

from lorasp.config import Cell, Config, load_config
from lorasp.planning import lookup
from lorasp.planning.compare import estimates
from lorasp.planning.plan import make_plan, write_plan
from lorasp.results import write_json

ROOT = Path(__file__).parents[2]
JOB = {
    "stage": "train",
    "model": "roberta-base",
    "task": "rte",
    "method": "lora-sp",
    "recipe": "stated",
}
DEFAULT = {"gpu": 1, "mem_mb": 1, "runtime": 1, "micro_batch": 0}
pytestmark = pytest.mark.usefixtures("cheap")


@pytest.fixture
def path(paper: Config, cheap: None, tmp_path: Path) -> Path:
    file = tmp_path / "results" / "paper" / "plan.json"
    write_plan(file, make_plan(paper, only="rte,roberta-base", gpu="h100-80gb"))
    return file


def test_resources_are_the_plans_numbers(path: Path) -> None:
    found = lookup.resources(str(path), DEFAULT, **JOB, seed="0")
    assert found["gpu"] == 1 and found["micro_batch"] == 64
    assert found["mem_mb"] >= 6 * 2**30 / 10**6
    assert 11 <= found["runtime"] < 60
    assert lookup.resources(str(path), DEFAULT, **JOB | {"method": "base", "recipe": "none"}) == {
        **found,
        "micro_batch": 0,
        "runtime": 12,
    }


def test_a_job_in_no_plan_gets_the_default(path: Path) -> None:
    assert lookup.resources(str(path), DEFAULT, **JOB | {"task": "mrpc"}) == DEFAULT


def test_without_a_plan_there_is_the_default(tmp_path: Path) -> None:
    assert lookup.resources(str(tmp_path / "plan.json"), DEFAULT, **JOB) == DEFAULT


def test_a_plan_holds_for_its_configuration_and_gpu(paper: Config, path: Path) -> None:
    assert not lookup.is_current(str(path), paper, None)  # a part of it
    write_plan(path, make_plan(paper, gpu="h100-80gb"))
    assert lookup.is_current(str(path), paper, None)
    assert lookup.is_current(str(path), paper, "h100-80gb")
    assert not lookup.is_current(str(path), paper, "a100-80gb")
    assert not lookup.is_current(str(path), paper | {"recipes": {}}, None)
    path.write_text("{}")
    assert not lookup.is_current(str(path), paper, None)


def test_another_plan_is_seen(path: Path, paper: Config) -> None:
    before = lookup.resources(str(path), DEFAULT, **JOB)
    plan = make_plan(paper, only="rte,roberta-base", gpu="rtx-3070-8gb")
    write_plan(path, plan)
    assert lookup.resources(str(path), DEFAULT, **JOB)["runtime"] > before["runtime"]


def trained(folder: Path, seconds: float, device: str) -> None:
    cell = Cell("paper", *(str(JOB[key]) for key in ("model", "task", "method", "recipe")), 0)
    record: dict[str, Any] = {
        "cell": vars(cell),
        "config": {"runtime": {"device": device}},
        "data": {},
        "provenance": {},
        "started": "",
        "finished": "",
        "wall_seconds": seconds,
        "peak_memory_bytes": 5 * 2**30,
        "parameters": {"trainable": 1, "total": 1},
        "adapter_bytes": 1,
        "steps": 1,
        "examples": 1,
        "tokens": 1,
        "loss": [],
        "final_loss": None,
        "best": None,
    }
    write_json(folder / cell.folder / "train.json", record, "train")


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_estimate_beside_actual(path: Path, paper: Config, tmp_path: Path, device: str) -> None:
    assert estimates(paper) == []
    trained(tmp_path, 300.0, device)
    (row,) = estimates(paper, tmp_path)
    assert {key: row[key] for key in ("model", "task", "method", "recipe")} == {
        key: JOB[key] for key in ("model", "task", "method", "recipe")
    }
    assert row["seeds"] == 1 and row["actual_seconds"] == 300.0
    assert row["ratio"] == pytest.approx(300.0 / row["planned_seconds"])
    memory = row["planned_memory"], row["actual_memory"]
    assert memory[1] == 5 * 2**30 if device == "cuda" else memory == (None, None)


def test_no_plan_no_rows(tmp_path: Path) -> None:
    assert estimates(load_config(ROOT / "config" / "smoke.yaml"), tmp_path / "nowhere") == []
