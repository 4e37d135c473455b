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
    assert len(of(plan, stage="profile")) == 36
    assert plan["totals"]["jobs"] == 2 * len(cells(paper)) + 36


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
    # LLaMA-13B's weights and two moments, which select: last keeps twice and writes once more
    (kept,) = (size for what, size in saved.items() if what.startswith("checkpoints"))
    assert kept == pytest.approx(3 * 12 * 13.0e9, rel=0.01)


def test_a_filter_needs_less(paper: Config) -> None:
    small = make_plan(paper, only="mrpc,lora-sp,roberta-base", gpu="h100-80gb")
    # train and evaluate: 5 seeds x 2 recipes, 3 seeds of the sweep's 4 other rates; the profile
    assert small["totals"]["jobs"] == 2 * (5 * 2 + 3 * 4) + 1
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
    for part in ("Disk", "Downloads", "Licences that ask for something", "Assumptions"):
        assert part in lines
    rows = [line for line in lines if re.match(r" +stated +\S.*lora", line)]
    assert any("64 x 1" in row for row in rows)


def test_jobs_that_cannot_start_are_told_apart(plan: dict[str, Any], paper: Config) -> None:
    assert "fit nowhere" not in as_text(plan)  # nothing of the paper, on these
    small = make_plan(paper, only="lora-sp,stated,seed-0", gpu="rtx-3070-8gb")
    count = sum(job["seeds"] for job in small["jobs"] if not job["fits"])
    (line,) = (line for line in as_text(small).splitlines() if line.endswith("fit nowhere"))
    assert 0 < count < small["totals"]["jobs"] and line.startswith(f"of these {count:,} jobs, ")


def test_only_weights_in_a_floating_format_are_shared_out(paper: Config) -> None:
    """On 8 GB LLaMA-7B by LoRA takes several GPUs in bf16, and by NF4 never more than one."""
    methods = paper["methods"] | {
        "lora-sp": {**paper["methods"]["lora-sp"], "settings": {"quantize": "nf4"}}
    }
    only = "llama-7b,stated,seed-0"
    for config, several in ((paper, True), (paper | {"methods": methods}, False)):
        (job,) = of(
            make_plan(config, f"{only},lora-sp", "rtx-3070-8gb"), stage="train", model="llama-7b"
        )
        assert (job["gpus"] > 1) == several


def test_the_limit_of_rows_is_for_each_subject_of_mmlu_alone(paper: Config) -> None:
    limited = {"layout": "mmlu", "rows": {"test": 30}}
    config = {
        "data_dir": "nowhere",
        "scale": "paper",
        "datasets": {
            "mmlu": {**limited, "source": paper["datasets"]["mmlu"]["source"]},
            "questions": {**limited, "source": {"kind": "pypi"}},
        },
    }
    assert workload.rows_of(config, "mmlu") == {"test": 30 * 57}
    assert workload.rows_of(config, "questions") == {"test": 30}


@pytest.mark.parametrize(
    ("stated", "end"), [(10_000, "of the 10.7 TB stated"), (1, "MORE than the 1.07 GB of requires")]
)
def test_the_disk_is_set_beside_what_is_stated(paper: Config, stated: int, end: str) -> None:
    config = paper | {"requires": paper["requires"] | {"disk_gib": stated}}
    told = as_text(make_plan(config, "rte,roberta-base", "h100-80gb"))
    (line,) = (line for line in told.splitlines() if line.startswith("disk: "))
    assert end in line


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
        ("NVIDIA A10G", "a10g-24gb"),
        ("NVIDIA H100 NVL", "h100-nvl-94gb"),
        ("NVIDIA H200", "h200-141gb"),
        ("NVIDIA GH200 480GB", "gh200-96gb"),
        ("NVIDIA B200", "b200-180gb"),
        ("NVIDIA A40", "a40-48gb"),
        ("NVIDIA L40", "l40-48gb"),
        ("NVIDIA GeForce RTX 3080", "rtx-3080-10gb"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada-48gb"),
        ("Quadro RTX 6000", None),
        ("Tesla V100-SXM2-32GB", "v100-32gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090-24gb"),
        ("NVIDIA L40S", "l40s-48gb"),
        ("NVIDIA L4", "l4-24gb"),
    ],
)
def test_a_gpu_is_known_by_what_torch_calls_it(shown: str, name: str | None) -> None:
    assert devices.match(shown) == name


class Cuda:
    """What torch says of a GPU."""

    def __init__(self, shown: str, gib: float, capability: tuple[int, int] = (8, 6)) -> None:
        self.shown, self.total_memory, self.capability = shown, int(gib * devices.GIB), capability

    def is_available(self) -> bool:
        return True

    def get_device_name(self, index: int) -> str:
        return self.shown

    def get_device_properties(self, index: int) -> "Cuda":
        return self

    def get_device_capability(self, index: int) -> tuple[int, int]:
        return self.capability


def test_a_gpu_in_no_table_has_its_own_memory_and_a_low_speed(
    paper: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda", Cuda("NVIDIA New", 40))
    found = devices.device(paper)
    assert (found["name"], found["memory_bytes"]) == ("NVIDIA New", 40 * 2**30)
    table = read_yaml(devices.FILE).values()
    assert found["tflops"]["fp32"] == min(entry["tflops"]["fp32"] for entry in table)
    made = make_plan(paper, "rte,roberta-base")
    assert "of NVIDIA New (in no table of lorasp, so taken to be as slow" in made["assumptions"][0]
    monkeypatch.setattr("torch.cuda", Cuda("NVIDIA Old", 40, (7, 5)))
    with pytest.raises(UsageError, match="NVIDIA Old has no bf16"):
        devices.device(paper)


@pytest.mark.parametrize(
    ("shown", "gib", "name", "memory", "slower"),
    [
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.7, "rtx-4090-24gb", 15.7, 15.7 / 23.5),
        ("NVIDIA GeForce RTX 4060 Ti", 7.6, "rtx-4060-ti-16gb", 7.6, 7.6 / 15.5),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 9.5, "a100-80gb", 9.5, 9.5 / 79.1),
        ("NVIDIA A100-SXM4-80GB", 79.3, "a100-80gb", 79.1, 1),
        ("NVIDIA A100-SXM4-80GB", 78.5, "a100-80gb", 78.5, 1),
    ],
)
def test_the_gpu_here_has_no_more_than_its_own_memory(
    monkeypatch: pytest.MonkeyPatch, shown: str, gib: float, name: str, memory: float, slower: float
) -> None:
    monkeypatch.setattr("torch.cuda", Cuda(shown, gib))
    found, table = devices.here(), devices.listed(name)
    assert found is not None and found["name"] == name
    assert found["memory_bytes"] == int(memory * devices.GIB)
    for key in ("bf16", "fp32"):
        assert found["tflops"][key] == pytest.approx(table["tflops"][key] * slower, abs=0.06)


def test_without_a_gpu_one_must_be_named(paper: Config) -> None:
    with pytest.raises(UsageError, match=r"no GPU here.*--gpu TYPE.*--config gpu=TYPE.*h100-80gb"):
        devices.device(paper)


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


def own_hub_model(paper: Config) -> Config:
    """The paper, and one task with a model from the hub that nobody knows."""
    group = {"tasks": ["rte"], "methods": ["lora"], "recipes": ["stated"], "seeds": [0]}
    models = paper["models"] | {"mine": paper["models"]["roberta-base"]}
    more = [*paper["experiments"], group | {"models": ["mine"]}]
    return paper | {"models": models, "experiments": more}


def test_what_is_known_is_planned(paper: Config, tmp_path: Path) -> None:
    config = own_hub_model(paper)
    made = make_plan(config, "rte", "h100-80gb")
    assert made["unsized"] == ["mine"]
    assert {job["model"] for job in made["jobs"]} == {"roberta-base", "roberta-large"}
    assert "NOT PLANNED: the runs of mine, of unknown size" in as_text(made)
    with pytest.raises(WorkError, match="the size of mine is in none of our tables"):
        make_plan(config, "mine", "h100-80gb")
    assert workload.untabled(config, "roberta-base") == []
    folder = tmp_path / workload.data_folder(config, "models", "mine")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert workload.unsized(config) == [] and workload.untabled(config) == ["mine"]


def test_the_base_model_costs_what_its_task_takes(paper: Config) -> None:
    """The same task at twice the length: the base model has the FLOPs that it had, for its text is
    the same, whatever else is planned for the model."""
    longer = paper["tasks"]["rte"] | {"max_length": 2 * paper["tasks"]["mrpc"]["max_length"]}
    both = paper | {"tasks": paper["tasks"] | {"rte": longer}}
    alone, beside = (
        of(make_plan(both, names, "h100-80gb"), stage="evaluate", method="base", task="rte")[0]
        for names in ("rte,roberta-base", "rte,mrpc,roberta-base")
    )
    assert beside["flops"] == alone["flops"]
    (shorter,) = of(
        make_plan(paper, "rte,roberta-base", "h100-80gb"), stage="evaluate", method="base"
    )
    assert alone["flops"] == pytest.approx(shorter["flops"], rel=1e-6)


def test_a_profile_takes_all_its_steps(paper: Config) -> None:
    """3 to warm up, 20 timed, 2 s of them or 20 more for the meter, 2 for memory and states."""
    config = paper | {"profile": paper["profile"] | {"warmup": 3, "repeats": 20}}
    (job,) = of(make_plan(config, "rte,roberta-base,lora", "h100-80gb"), stage="profile")
    (cell,) = (cell for cell in paper["profile"]["cells"] if cell["model"] == "roberta-base")
    step = 6 * 0.125e9 * cell["length"] * cell["batch"]
    assert job["flops"] == pytest.approx(45 * step)
    each = max(step / (0.35 * 989e12), 0.004 + 12 * 0.0014)
    start = 30 + 4 * 0.125  # to read the weights
    assert job["seconds"] == pytest.approx(25 * each + max(20 * each, 2.0) + start, abs=0.06)
    never = paper | {"profile": paper["profile"] | {"warmup": 0, "repeats": 20}}
    (job,) = of(make_plan(never, "rte,roberta-base,lora", "h100-80gb"), stage="profile")
    assert job["flops"] == pytest.approx(43 * step)


def test_memory_is_the_tensors_and_what_lies_beside(plan: dict[str, Any]) -> None:
    for job in plan["jobs"]:
        beside = job["tensor_bytes"] * 1.06 + 0.6 * 2**30
        assert job["memory_bytes"] == pytest.approx(beside, abs=2)


def test_each_gpu_has_a_process_on_the_host_and_one_saves_all(plan: dict[str, Any]) -> None:
    (job,) = of(plan, model="llama-13b", method="ft", recipe="stated", stage="train")
    weights = 4 * 13.0e9  # as the cheap simulation has them
    assert job["gpus"] == 4
    assert job["host_memory_bytes"] == pytest.approx(4 * 6 * 2**30 + 1.2 * weights)


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
