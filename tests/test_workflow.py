"""The whole workflow: a real smoke run, what a change reruns, and the refusals."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from offline import offline

from lorasp.bench.pipeline import copy_checkout, run_smoke
from lorasp.config import Cell, cells, load_config
from lorasp.locks import take
from lorasp.results import read_json

ROOT = Path(__file__).parents[1]
Snakemake = Callable[..., subprocess.CompletedProcess[str]]
RUNS = len(cells(load_config(ROOT / "config/smoke.yaml")))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which the smoke run has been made, in a path with a space.

    Where the kernel allows it, it is made without a network: see test_hermetic.py.
    """
    folder = tmp_path_factory.mktemp("smoke run")
    copy_checkout(ROOT, folder)
    done = run_smoke(folder, cores=2, within=offline())
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def snakemake_in(folder: Path) -> Snakemake:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "snakemake", "--cores", "1", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture
def snakemake(checkout: Path) -> Snakemake:
    return snakemake_in(checkout)


def planned(snakemake: Snakemake, *arguments: str, scale: str = "smoke") -> dict[str, int]:
    """Rule and number of jobs that a dry run plans."""
    done = snakemake("--dry-run", *arguments, "--config", f"scale={scale}")
    assert done.returncode == 0, done.stderr[-3000:]
    table = re.search(r"^job +count\n-+ +-+\n(.*?)^total", done.stdout, re.MULTILINE | re.DOTALL)
    if table is None:
        assert "Nothing to be done" in done.stdout + done.stderr
        return {}
    counts = dict(line.split() for line in table[1].splitlines())
    return {rule: int(count) for rule, count in counts.items() if rule != "all"}


def test_every_run_and_profile_has_a_valid_result(checkout: Path) -> None:
    config = load_config(checkout / "config/smoke.yaml")
    for cell in cells(config):
        train = read_json(checkout / cell.folder / "train.json", "train")
        metrics = read_json(checkout / cell.folder / "metrics.json", "metrics")
        assert train["cell"] == metrics["cell"] == vars(cell)
        assert (checkout / cell.folder / "log.txt").exists()
    for planned_profile in config["profile"]["cells"]:
        for method in planned_profile["methods"]:
            name = f"results/smoke/profile/{planned_profile['model']}/{method}.json"
            read_json(checkout / name, "profile")


def test_the_grid_covers_every_path(checkout: Path) -> None:
    runs = cells(load_config(checkout / "config/smoke.yaml"))
    glue = {"mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb"}
    assert {run.task for run in runs} == glue | {"wmt16-en-ro", "alpaca-mmlu"}
    for task in {run.task for run in runs}:
        methods = {run.method for run in runs if run.task == task}
        assert methods >= {"base", "ft", "lora", "lora-half", "lora-sp"}
    assert {run.seed for run in runs} == {0, 1}


@pytest.mark.parametrize(
    ("model", "task", "method", "recipe", "loss"),
    [
        ("roberta-tiny", "mrpc", "lora-sp", "tuned", 0.70074),
        ("t5-tiny", "wmt16-en-ro", "lora", "stated", 7.37785),
        ("llama-tiny", "alpaca-mmlu", "ft", "stated", 6.41626),
    ],
)
def test_losses_are_the_pinned_ones(
    checkout: Path, model: str, task: str, method: str, recipe: str, loss: float
) -> None:
    folder = Cell("smoke", model, task, method, recipe, 0).folder
    assert read_json(checkout / folder / "train.json", "train")["final_loss"] == pytest.approx(
        loss, abs=2e-3
    )


def test_lora_sp_trains_as_many_parameters_as_lora_at_half_the_rank(checkout: Path) -> None:
    counts = {
        method: read_json(
            checkout
            / Cell("smoke", "t5-tiny", "wmt16-en-ro", method, "stated", 0).folder
            / "train.json",
            "train",
        )["parameters"]["trainable"]
        for method in ("lora", "lora-half", "lora-sp")
    }
    # 2 encoder, 2 decoder and 2 cross attentions, q and v of 32 x 32, rank 4
    assert counts["lora"] == 6 * 2 * 4 * (32 + 32)
    assert counts["lora-half"] == counts["lora-sp"] == counts["lora"] // 2


def test_report_shows_what_metrics_say(checkout: Path) -> None:
    report = checkout / "reports/smoke"
    assert {path.name for path in report.iterdir()} >= {"report.html", "report.md", "results.json"}
    shown = pd.read_csv(report / "tables/scores.csv")
    shown = shown[shown["headline"]].set_index(["model", "task", "method", "recipe", "seed"])
    runs = cells(load_config(checkout / "config/smoke.yaml"))
    assert len(shown) == len(runs)
    for run in runs:
        headline = read_json(checkout / run.folder / "metrics.json", "metrics")["headline"]
        row = shown.loc[(run.model, run.task, run.method, run.recipe, run.seed)]
        value = float("nan") if headline["value"] is None else headline["value"]
        assert row["value"] == pytest.approx(value, nan_ok=True)
    page = (report / "report.html").read_text()
    assert "no score on this page is a result" in page
    assert all(method in page for method in ("LoRA-SP", "LoRA, r/2", "Base", "FT"))


def test_nothing_is_run_again(snakemake: Snakemake) -> None:
    assert planned(snakemake) == {}


def edited(path: Path, old: str, new: str) -> Callable[[], None]:
    """Replace a text where it first stands in a file; the returned function puts it back."""
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new, 1))
    return lambda: (path.write_text(before), None)[1]


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        # what is only shown
        ("config/smoke.yaml", "stands_for: t5-base", "stands_for: t5-large", {"report": 1}),
        # how translations are scored
        ("config/smoke.yaml", "num_beams: 2", "num_beams: 3", {"evaluate": 13, "report": 1}),
        # one method's setting
        (
            "config/smoke.yaml",
            "lora-sp-init: {settings: {rank: 4",
            "lora-sp-init: {settings: {rank: 2",
            {"train": 2, "evaluate": 2, "profile": 1, "report": 1},
        ),
        # one recipe
        (
            "config/smoke.yaml",
            "learning_rate: 1.0e-3",
            "learning_rate: 2.0e-3",
            {"train": 10, "evaluate": 10, "report": 1},
        ),
        # the code of one stage
        ("lorasp/evaluation/glue.py", '"""', '"""A note. ', {"evaluate": RUNS, "report": 1}),
        ("lorasp/report/page.py", '"""', '"""A note. ', {"report": 1}),
        # code that no result depends on
        ("lorasp/doctor.py", '"""', '"""A note. ', {}),
    ],
)
def test_a_change_reruns_what_depends_on_it(
    checkout: Path, snakemake: Snakemake, file: str, old: str, new: str, expected: dict[str, int]
) -> None:
    restore = edited(checkout / file, old, new)
    try:
        assert planned(snakemake) == expected
    finally:
        restore()


def test_a_filter_runs_nothing_else(snakemake: Snakemake) -> None:
    """From nothing: the data, model and profile of the named runs, and no others."""
    done = snakemake(
        "--dry-run", "--forceall", "--config", "scale=smoke", "only=mrpc,stated,lora-sp,seed-0"
    )
    lines = re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE)
    jobs = {rule: int(count) for rule, count in lines}
    assert {rule for rule, count in jobs.items() if count > 1} == {"total"}
    assert {"prepare_dataset", "prepare_model", "prepare_tokens", "train", "profile"} <= set(jobs)


def test_who_waits_for_the_paper_at_its_scale(tmp_path: Path) -> None:
    """The report of a whole shipped scale, once all else is under way; never one's own runs."""
    copy_checkout(ROOT, tmp_path)
    run = {"models": ["roberta-tiny"], "tasks": ["mrpc"], "methods": ["lora"]}
    own = {"experiments": [run | {"recipes": ["stated"], "seeds": [0]}]}
    config = {"extends": "smoke.yaml", "scale": "own", "methods": {"one": {"like": "lora"}}}
    for name, keys in {"own": own, "more": {"scale": "more"}}.items():
        (tmp_path / f"config/{name}.yaml").write_text(yaml.safe_dump(config | keys))

    def priorities(*arguments: str) -> dict[str, set[str]]:
        """Of every rule with a job those that its jobs have."""
        done = snakemake_in(tmp_path)("--dry-run", *arguments)
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, set[str]] = {}
        for rule, job in re.findall(r"^(?:local)?rule (\w+):\n((?: {4}.*\n)+)", done.stdout, re.M):
            found.setdefault(rule, set()).update(re.findall(r"priority: (\d+)", job) or ["0"])
        return found

    needed = {"prepare_dataset", "prepare_model", "prepare_tokens", "train", "evaluate", "profile"}
    for chosen in (["scale=own"], ["scale=smoke", "only=mrpc,lora,stated,seed-0"]):
        assert set(priorities("--config", *chosen)) == needed | {"audit", "report", "all"}
    for name in ("smoke", "more"):
        found = priorities("--config", f"scale={name}")
        assert {rule for rule, levels in found.items() if levels != {"0"}} == needed | {"budget"}
        assert found["simulate"] == {"0"}
    assert set(priorities("simulated", "--config", "scale=own")) == {"simulate", "simulated"}


def test_a_report_that_does_not_wait_for_simulations_shows_those_of_this_code(
    tmp_path: Path,
) -> None:
    """What is simulated later is an input of it, and made again when the code has changed."""
    copy_checkout(ROOT, tmp_path)
    snakemake = snakemake_in(tmp_path)
    run = {"models": ["roberta-tiny"], "tasks": ["mrpc"], "methods": ["lora"]}
    own = {"experiments": [run | {"recipes": ["stated"], "seeds": [0]}]}
    (tmp_path / "config/own.yaml").write_text(
        yaml.safe_dump({"extends": "smoke.yaml", "scale": "own"} | own)
    )
    simulation = "results/simulated/roberta-base/lora.json"
    done = snakemake(simulation, "--config", "scale=own")
    assert done.returncode == 0, done.stderr[-3000:]
    report = snakemake("--dry-run", "--config", "scale=own")
    (needed,) = re.findall(r"^rule report:\n    input: (.+)", report.stdout, re.MULTILINE)
    assert simulation in needed.split(", ") and "rule simulate:" not in report.stdout
    edited(tmp_path / "lorasp/profiling/step.py", '"""', '"""A note. ')
    assert planned(snakemake, scale="own")["simulate"] == 1


def test_a_deleted_result_is_made_again_alone(checkout: Path, snakemake: Snakemake) -> None:
    metrics = Cell("smoke", "roberta-tiny", "rte", "lora", "stated", 1).folder / "metrics.json"
    before = (checkout / metrics).read_bytes()
    (checkout / metrics).unlink()
    try:
        assert planned(snakemake, str(metrics)) == {"evaluate": 1}
        assert planned(snakemake, "rte") == {"evaluate": 1, "rte": 1}
        assert planned(snakemake, "mrpc") == {"mrpc": 1}
    finally:
        (checkout / metrics).write_bytes(before)


def test_a_damaged_file_is_named_and_prepared_again(checkout: Path, snakemake: Snakemake) -> None:
    file = checkout / "data/smoke/wmt16/test.parquet"
    before = file.read_bytes()
    manifest = file.with_name("manifest.json").read_bytes()
    file.write_bytes(before[:-1])
    done = snakemake("data/smoke/wmt16/manifest.json", "--config", "scale=smoke")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "test.parquet" in done.stderr
    assert file.read_bytes() == before
    assert file.with_name("manifest.json").read_bytes() == manifest


def test_snakemake_report(checkout: Path, snakemake: Snakemake) -> None:
    done = snakemake("--report", "report.zip", "--config", "scale=smoke")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (checkout / "report.zip").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["scale=nothing"], "there is no configuration config/nothing.yaml"),
        (["scale=smoke", "only=lora-pp"], "only=lora-pp: no run has that name; allowed are"),
        (["scale=smoke", "sed=1"], "--config sed: allowed are scale=NAME"),
    ],
)
def test_wrong_arguments_are_refused(
    snakemake: Snakemake, arguments: list[str], sentence: str
) -> None:
    done = snakemake("--dry-run", "--config", *arguments)
    assert done.returncode == 1
    assert sentence in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_second_workflow_in_one_folder_is_refused(checkout: Path, snakemake: Snakemake) -> None:
    metrics = Cell("smoke", "roberta-tiny", "rte", "ft", "stated", 0).folder / "metrics.json"
    (checkout / metrics).unlink()
    arguments = (str(metrics), "--config", "scale=smoke")
    running = take(checkout / ".snakemake" / "lorasp.lock")
    assert running is not None
    with running:
        done = snakemake(*arguments)
        assert planned(snakemake, str(metrics)) == {"evaluate": 1}  # asking does no harm
    assert done.returncode == 1
    assert f"process {os.getpid()} on" in done.stdout + done.stderr
    assert "nothing was started" in done.stdout + done.stderr
    assert not (checkout / metrics).exists()
    assert snakemake(*arguments).returncode == 0
    read_json(checkout / metrics, "metrics")


def test_jobs_ask_for_what_the_plan_says(checkout: Path, snakemake: Snakemake) -> None:
    """The smoke run has made its plan before its first job; of the paper there is none yet."""
    plan = read_json(checkout / "results/smoke/plan.json", "plan")
    (job,) = (
        job
        for job in plan["jobs"]
        if (job["stage"], job["task"], job["method"], job["recipe"])
        == ("train", "mrpc", "lora-sp", "stated")
    )
    assert (job["gpus"], job["micro_batch"], job["accumulation"]) == (0, 16, 1)
    run = Cell("smoke", "roberta-tiny", "mrpc", "lora-sp", "stated", 0).folder / "train.json"
    recipe = read_json(checkout / run, "train")["config"]["recipe"]
    assert recipe["micro_batch_size"] == 16
    shown = snakemake("--dry-run", "--forceall", str(run), "--config", "scale=smoke").stdout
    assert f"gpu=0, runtime={job['runtime_minutes']}, micro_batch=16" in shown
    paper = snakemake("--dry-run", "--config", "scale=paper", "only=rte,lora-sp,stated").stdout
    assert "micro_batch=<TBD>" in paper


def test_the_paper_is_planned_anywhere(snakemake: Snakemake) -> None:
    jobs = planned(snakemake, scale="paper")
    runs = len(cells(load_config(ROOT / "config/paper.yaml")))
    assert jobs["train"] == jobs["evaluate"] == runs
    assert jobs["report"] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_the_paper_scale_is_refused_without_a_gpu(checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "all"],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    told = done.stdout + done.stderr
    assert told.count("the paper scale cannot run on this machine") == 1
    assert "a CUDA device" in told
    assert "make smoke" in told
    assert not (checkout / "results/paper").exists()
    assert not (checkout / "data/paper").exists()
