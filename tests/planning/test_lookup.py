"""What the workflow and the report read of a plan."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lorasp.config import Cell, Config, load_config
from lorasp.planning import devices, lookup
from lorasp.planning.compare import estimates
from lorasp.planning.plan import make_plan, write_plan
from lorasp.results import read_json, write_json

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


def test_a_plan_holds_for_the_gpu_that_is_here(
    paper: Config, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plan(path, make_plan(paper, gpu="rtx-4090-24gb"))
    card = devices.listed("rtx-4090-24gb")
    for found, holds in (
        (card, True),
        (card | {"memory_bytes": 16 * 2**30}, False),  # a laptop's
        (devices.listed("a100-80gb"), False),
        (None, True),  # there is none to compare with
    ):
        monkeypatch.setattr(devices, "here", lambda found=found: found)
        assert lookup.is_current(str(path), paper, None) is holds
        assert lookup.is_current(str(path), paper, "rtx-4090-24gb")


def test_a_plan_holds_for_its_packages(
    paper: Config, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = lookup.made_from(paper)
    assert {"torch", "transformers", "peft", "bitsandbytes"} == set(lookup.libraries())
    monkeypatch.setattr(lookup, "libraries", lambda: {"torch": "1.0"})
    assert lookup.made_from(paper) != before


def test_a_plan_is_old_once_a_model_that_it_left_out_is_known(
    paper: Config, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plan(path, make_plan(paper, gpu="h100-80gb") | {"unsized": ["mine"]})
    monkeypatch.setattr(lookup, "unsized", lambda config: ["mine"])
    assert lookup.is_current(str(path), paper, None)
    monkeypatch.setattr(lookup, "unsized", lambda config: [])
    assert not lookup.is_current(str(path), paper, None)


def of_stage(stage: str, model: str, method: str, task: str = "alpaca-mmlu") -> dict[str, Any]:
    recipe = {"model": model, "task": task, "method": method, "recipe": "stated", "seed": "0"}
    return {"stage": stage, **recipe}


def test_what_these_gpus_do_not_hold_is_not_started(paper: Config) -> None:
    plan = make_plan(paper, only="stated,seed-0,lora,ft", gpu="h100-80gb")
    small = [of_stage("train", "roberta-base", name, "rte") for name in ("ft", "lora")]
    small.append(of_stage("train", "llama-13b", "lora"))
    assert lookup.refusal(plan, [*small, {"stage": "audit"}, {"stage": "all"}], 1) is None
    large = of_stage("train", "llama-13b", "ft")
    assert lookup.refusal(plan, [*small, large], 4) is None
    assert lookup.refusal(plan, [*small, large]) is None  # a cluster's own concern
    sentence = lookup.refusal(plan, [*small, large], 2)
    assert sentence is not None
    assert sentence.startswith("2 x h100-80gb (79.1 GiB) is too little for 1 of the jobs")
    assert "a machine, or a cluster's nodes, with 4 of these GPUs" in sentence
    assert (
        "train llama-13b ft (1 job: too large for one GPU, its states are shared by 4" in sentence
    )
    assert "recompute or quantize" in sentence
    assert "--config only=roberta-base, then --config only=llama-13b,lora" in sentence
    assert "eval_batch_size" not in sentence
    asked = lookup.refusal(plan | {"jobs": [job | {"fits": False} for job in plan["jobs"]]}, small)
    assert asked is not None and "for 3 of the jobs" in asked
    assert "leaving them out" not in asked


def test_a_job_asks_for_the_gpus_that_it_is_planned_on(paper: Config, path: Path) -> None:
    write_plan(path, make_plan(paper, "stated,seed-0,ft", "h100-80gb"))
    large = of_stage("train", "llama-13b", "ft")
    jobs = read_json(path, "plan")["jobs"]
    assert max(job["gpus"] for job in jobs) == 4
    assert lookup.resources(str(path), DEFAULT, **large)["gpu"] == 4


def prepared(config: Config, gpu: str | None, needed: list[dict[str, Any]]) -> str | None:
    Path("scale.yaml").write_text(yaml.safe_dump(config))
    return lookup.prepare("scale.yaml", config, gpu, needed)


def test_the_plan_that_cannot_be_made_says_why(
    paper: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    job = of_stage("train", "roberta-base", "lora", "rte")
    assert prepared(paper, None, [{"stage": "audit"}]) is None  # nothing to plan for
    assert not Path("results").exists()
    sentence = prepared(paper, None, [job])
    assert sentence is not None and "\n" not in sentence
    assert (
        "the plan of scale.yaml cannot be made, and nothing was started: there is no GPU here"
        in (sentence)
    )
    assert "--config gpu=TYPE" in sentence
    sentence = prepared(paper, "v100-16gb", [job])
    assert sentence is not None and "v100-16gb has no bf16" in sentence


def test_the_plan_is_made_and_then_asked(
    paper: Config, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_plan(paper, gpu="h100-80gb")
    calls = []

    def command(file: Path, *_: Any) -> None:
        calls.append(file)
        write_plan(file, made)

    monkeypatch.setattr(lookup, "_make", command)
    monkeypatch.chdir(path.parents[2])
    small, large = of_stage("train", "llama-13b", "lora"), of_stage("train", "llama-13b", "ft")
    assert lookup.prepare("paper.yaml", paper, "h100-80gb", [small]) is None
    assert lookup.prepare("paper.yaml", paper, "h100-80gb", [small]) is None
    assert len(calls) == 1  # it holds
    sentence = lookup.prepare("paper.yaml", paper, "h100-80gb", [small, large], 1)
    assert sentence is not None and "train llama-13b ft" in sentence
    assert "'h1000' is unknown" in str(lookup.prepare("paper.yaml", paper, "h1000", [small]))
    everything = sorted({run.model for run in lookup.all_cells(paper)})
    monkeypatch.setattr(lookup, "unsized", lambda config: everything)
    write_plan(path, made | {"made_from": "before"})
    assert lookup.prepare("paper.yaml", paper, "h100-80gb", [small]) is None
    assert not path.exists()  # jobs get the default, not what an old plan says


def test_another_plan_is_seen(path: Path, paper: Config) -> None:
    before = lookup.resources(str(path), DEFAULT, **JOB)
    plan = make_plan(paper, only="rte,roberta-base", gpu="rtx-3070-8gb")
    write_plan(path, plan)
    assert lookup.resources(str(path), DEFAULT, **JOB)["runtime"] > before["runtime"]


def trained(
    folder: Path,
    seconds: float,
    device: str,
    gpu: str = "NVIDIA H100 80GB HBM3",
    micro: int = 64,
    halved: tuple[int, ...] = (),
) -> None:
    cell = Cell("paper", *(str(JOB[key]) for key in ("model", "task", "method", "recipe")), 0)
    record: dict[str, Any] = {
        "cell": vars(cell),
        "config": {
            "runtime": {"device": device},
            "recipe": {"batch_size": 64},
        },
        "data": {},
        "provenance": {"machine": {"gpus": [gpu]}},
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
        "status": "finished",
        "diverged_at": None,
        "processes": 1,
        "attention": "sdpa",
        "micro_batch": {"asked": 64, "used": micro, "halved": list(halved)},
        "resumed": [],
    }
    write_json(folder / cell.folder / "train.json", record, "train")


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_estimate_beside_actual(path: Path, paper: Config, tmp_path: Path, device: str) -> None:
    assert estimates(paper) == []
    if device == "cpu":  # a plan of the same job for this machine
        plan = read_json(path, "plan")
        write_plan(path, plan | {"gpu": plan["gpu"] | {"name": "cpu"}})
    trained(tmp_path, 300.0, device)
    (row,) = estimates(paper, tmp_path)
    assert {key: row[key] for key in ("model", "task", "method", "recipe")} == {
        key: JOB[key] for key in ("model", "task", "method", "recipe")
    }
    assert row["seeds"] == 1 and row["actual_seconds"] == 300.0
    assert row["ratio"] == pytest.approx(300.0 / row["planned_seconds"])
    tensors = row["planned_tensors"], row["actual_tensors"]
    (job,) = (job for job in read_json(path, "plan")["jobs"] if JOB.items() <= job.items())
    assert tensors == ((job["tensor_bytes"], 5 * 2**30) if device == "cuda" else (None, None))


@pytest.mark.parametrize(
    ("device", "gpu", "micro", "halved"),
    [
        ("cpu", "NVIDIA H100 80GB HBM3", 64, ()),
        ("cuda", "NVIDIA A100-SXM4-80GB", 64, ()),
        ("cuda", "NVIDIA New", 64, ()),
        ("cuda", "NVIDIA H100 80GB HBM3", 16, ()),
        ("cuda", "NVIDIA H100 80GB HBM3", 64, (3,)),
    ],
)
def test_a_run_that_was_not_as_planned_is_not_compared(
    path: Path,
    paper: Config,
    tmp_path: Path,
    device: str,
    gpu: str,
    micro: int,
    halved: tuple[int, ...],
) -> None:
    trained(tmp_path, 300.0, device, gpu, micro, halved)
    assert estimates(paper, tmp_path) == []


def test_no_plan_no_rows(tmp_path: Path) -> None:
    assert estimates(load_config(ROOT / "config" / "smoke.yaml"), tmp_path / "nowhere") == []
