"""The plan of the paper: every cell, its micro-batches, what to fetch and to accept, in words."""

import re
from pathlib import Path
from typing import Any

import pytest

from lorasp.cli import main
from lorasp.config import Config, cells, pick
from lorasp.errors import UsageError, WorkError
from lorasp.planning import devices, workload
from lorasp.planning.plan import make_plan
from lorasp.planning.text import as_text
from lorasp.results import read_json, read_yaml

ROOT = Path(__file__).parents[2]
PAPER = str(ROOT / "config" / "paper.yaml")
pytestmark = pytest.mark.usefixtures("cheap")


def of(plan: dict[str, Any], **names: Any) -> list[dict[str, Any]]:
    return [job for job in plan["jobs"] if names.items() <= job.items()]


@pytest.fixture
def plan(paper: Config, cheap: None) -> dict[str, Any]:
    return make_plan(paper, gpu="h100-80gb")


def test_every_cell_is_trained_and_evaluated(plan: dict[str, Any], paper: Config) -> None:
    runs = {(run.model, run.task, run.method, run.recipe) for run in cells(paper)}
    for stage in ("train", "evaluate"):
        jobs = of(plan, stage=stage)
        assert {
            tuple(job[k] for k in ("model", "task", "method", "recipe")) for job in jobs
        } == runs
        assert sum(job["seeds"] for job in jobs) == len(cells(paper))
    assert len(of(plan, stage="profile")) == 29
    assert plan["totals"]["jobs"] == 2 * len(cells(paper)) + 29


def test_the_micro_batches_make_the_stated_batch(plan: dict[str, Any], paper: Config) -> None:
    for job in of(plan, stage="train"):
        if job["method"] == "base":
            assert job["micro_batch"] is None
            continue
        names = {key: job[key] for key in ("model", "task", "method")}
        batch = pick(paper["recipes"][job["recipe"]], **names)["batch_size"]
        assert job["micro_batch"] * job["accumulation"] * job["gpus"] == batch
        assert job["fits"] and job["memory_bytes"] <= plan["gpu"]["memory_bytes"]


def test_full_fine_tuning_of_llama_takes_several_gpus(plan: dict[str, Any]) -> None:
    """13 G parameters of 16 bytes are 208 GB: more than two GPUs of 79 GiB hold, not more than four
    with 52 GB, two gathered layers and a sequence on each."""
    assert {job["gpus"] for job in of(plan, model="llama-13b", method="ft", stage="train")} == {4}
    assert {job["gpus"] for job in of(plan, model="llama-13b", method="lora", stage="train")} == {1}
    assert plan["totals"]["gpus_at_once"] == 4
    told = as_text(plan)
    assert "several GPUs: train llama-13b ft (6 jobs): too large for one GPU" in told


def test_the_totals_are_the_sums(plan: dict[str, Any]) -> None:
    hours = sum(job["seconds"] * job["gpus"] * job["seeds"] for job in plan["jobs"]) / 3600
    assert plan["totals"]["gpu_hours"] == pytest.approx(hours, abs=0.01)
    assert plan["totals"]["disk_bytes"] == sum(entry["bytes"] for entry in plan["disk"])
    saved = {entry["what"]: entry["bytes"] for entry in plan["disk"]}
    full = 4e9 * (80 * (0.125 + 0.355) + 6 * (0.223 + 0.738) + 6 * (6.74 + 13.0))
    assert saved["models saved by full fine-tuning"] == pytest.approx(full)


def test_a_filter_needs_less(paper: Config) -> None:
    small = make_plan(paper, only="mrpc,lora-sp,roberta-base", gpu="h100-80gb")
    assert small["totals"]["jobs"] == 21  # 5 seeds x 2 recipes x 2 stages, and the profile
    assert [entry["id"] for entry in small["downloads"]] == [
        "FacebookAI/roberta-base",
        "nyu-mll/glue/mrpc",
    ]
    assert [entry["what"] for entry in small["licences"]] == ["nyu-mll/glue"]
    llama = make_plan(paper, only="llama-7b,lora-sp", gpu="h100-80gb")
    assert {entry["what"] for entry in llama["licences"]} == {
        "huggyllama/llama-7b",
        "tatsu-lab/alpaca",
    }
    assert not any(entry["gated"] for entry in llama["downloads"])


def test_a_gated_model_is_named(paper: Config) -> None:
    config = paper | {"experiments": [{**paper["experiments"][-1], "models": ["llama-2-7b"]}]}
    config["profile"] = paper["profile"] | {"cells": []}
    gated = make_plan(config, gpu="h100-80gb")
    assert "gated: meta-llama/Llama-2-7b-hf" in as_text(gated)
    assert any("HF_TOKEN" in entry["do"] for entry in gated["licences"])


def test_what_does_not_fit_is_told_with_what_would(paper: Config) -> None:
    """8 GB: LLaMA-13B by LoRA fits no number of GPUs and not one with NF4; 7B with both does."""
    small = make_plan(paper, only="lora-sp,stated,seed-0", gpu="rtx-3070-8gb")
    for model in ("llama-7b", "llama-13b"):
        (job,) = of(small, stage="train", model=model)
        assert job["gpus"] > 1 or not job["fits"]
    (job,) = of(small, stage="train", model="llama-7b")
    assert "one holds it with quantize: nf4, recompute: full" in job["because"]
    assert "DOES NOT FIT" in as_text(small)
    assert small["totals"]["unfit"] > 0


def test_the_text_fits_a_page_and_begins_with_the_answer(plan: dict[str, Any]) -> None:
    lines = as_text(plan).splitlines()
    assert max(len(line) for line in lines) <= 100
    assert re.fullmatch(
        r"paper on h100-80gb \(79\.1 GiB\): [\d,]+ jobs, about [\d,]+ GPU hours", lines[0]
    )
    assert any(line.startswith("disk: ") and "MORE than the 644 GB" in line for line in lines)
    for part in ("Disk", "Downloads", "Licences that ask for something", "Assumptions"):
        assert part in lines
    rows = [line for line in lines if re.match(r" +stated +lora", line)]
    assert any("64 x 1" in row for row in rows)


def test_the_command_prints_and_writes(tmp_path: Path, shown: Any) -> None:
    line = ["plan", "--config", PAPER, "--gpu", "a100-80gb", "--only", "rte", "--out", "plan.json"]
    assert main([*line, "--json"]) == 0
    printed = shown()
    written = read_json(tmp_path / "plan.json", "plan")
    assert {"schema", "kind"} == set(written) - set(printed)
    assert written["gpu"]["name"] == "a100-80gb"
    assert {job["task"] for job in written["jobs"]} == {"rte", None}


def test_twice_the_utilisation_is_no_slower(paper: Config) -> None:
    slow, fast = (make_plan(paper, "llama-7b", "h100-80gb", share) for share in (0.2, 0.4))
    assert slow["totals"]["flops"] == fast["totals"]["flops"]
    assert 1.5 < slow["totals"]["gpu_hours"] / fast["totals"]["gpu_hours"] < 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--gpu", "h1000"], "gpu 'h1000' is unknown; known are h100-80gb, h100-pcie-80gb"),
        (["--gpu", "cpu"], "gpu is cpu, but runtime.device of the paper scale is cuda"),
        (["--gpu", "v100-16gb"], "v100-16gb has no bf16"),
        (["--gpu", "h100-80gb", "--utilisation", "0"], "utilisation is 0; allowed is more than 0"),
        (["--gpu", "h100-80gb", "--only", "lora-pp"], "only=lora-pp: no run has that name"),
    ],
)
def test_wrong_arguments(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main(["plan", "--config", PAPER, *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_scale_is_the_file_of_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--scale", "big"]) == 2
    assert "there is no configuration config/big.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shown", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A10", "a10-24gb"),
        ("NVIDIA A10G", None),
        ("Tesla V100-SXM2-32GB", "v100-32gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090-24gb"),
        ("NVIDIA L40S", "l40s-48gb"),
        ("NVIDIA L4", "l4-24gb"),
    ],
)
def test_a_gpu_is_known_by_what_torch_calls_it(shown: str, name: str | None) -> None:
    assert devices.match(shown) == name


def test_the_table_of_devices_is_whole() -> None:
    for name, entry in read_yaml(devices.FILE).items():
        stated = int(re.search(r"(\d+)gb$", name)[1])  # type: ignore[index]
        assert 0.88 * stated < entry["memory_gib"] < 1.0 * stated
        assert {"bf16", "fp16", "fp32"} == set(entry["tflops"])


def test_rows_come_from_the_source_and_the_limits(paper: Config) -> None:
    assert workload.rows_of(paper, "mrpc") == {"train": 3668, "validation": 408}
    limited = paper | {"datasets": {"mrpc": paper["datasets"]["mrpc"] | {"rows": {"train": 100}}}}
    assert workload.rows_of(limited, "mrpc") == {"train": 100, "validation": 408}


def test_a_model_of_unknown_size_must_be_prepared(paper: Config, tmp_path: Path) -> None:
    config = paper | {"models": {"mine": paper["models"]["roberta-base"]}}
    with pytest.raises(WorkError, match=r"lorasp prepare --config config/paper\.yaml --model mine"):
        workload.shape(config, "mine", tmp_path)


def test_a_micro_batch_of_the_recipe_wins_and_must_divide(paper: Config) -> None:
    recipe = paper["recipes"]["stated"] | {"micro_batch_size": 8}
    given = paper | {"recipes": paper["recipes"] | {"stated": recipe}}
    made = make_plan(given, only="rte,lora,stated,roberta-base", gpu="h100-80gb")
    (job,) = of(made, stage="train")
    assert (job["micro_batch"], job["accumulation"]) == (8, 8)
    recipe["micro_batch_size"] = 7
    with pytest.raises(UsageError, match="micro_batch_size 7 does not divide batch_size 64"):
        make_plan(given, only="rte,lora,stated,roberta-base", gpu="h100-80gb")


@pytest.mark.slow
def test_the_paper_by_real_simulation(
    paper: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of it, several minutes on two cores: what fits one H100 and what does not."""
    monkeypatch.undo()  # no cheap steps here
    monkeypatch.chdir(tmp_path)
    made = make_plan(paper, gpu="h100-80gb")
    assert {job["gpus"] for job in of(made, stage="train", method="lora-sp")} == {1}
    assert {job["gpus"] for job in of(made, model="llama-7b", method="ft", stage="train")} == {2}
    for job in of(made, stage="train"):
        assert job["fits"]
        if job["model"].startswith(("roberta", "t5")) and job["micro_batch"]:
            assert job["accumulation"] == 1  # the whole batch at once
    (base,) = of(
        made, model="roberta-base", task="mnli", method="lora", recipe="stated", stage="train"
    )
    # 392,702 rows, 3 epochs, 40 tokens: 6 x 85 M weights of the layers, less the frozen ones' third
    tokens = 392_702 * 3 * 40 * 1.1
    assert base["flops"] == pytest.approx(4 * 86e6 * tokens, rel=0.1)
