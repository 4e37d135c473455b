# What the rules share: the configuration of the scale, and where the files of a run lie.
import os
import sys
from pathlib import Path

from lorasp import public_models
from lorasp.claims import claims_file
from lorasp.config import Cell, cells, data_folder, decisive, load_config, resolve
from lorasp.config import resolve_task, stage_code, text_of
from lorasp.data.folders import forget_damaged
from lorasp.doctor import examine, refusal
from lorasp.errors import UsageError
from lorasp.results import fingerprint
from lorasp.serve import use_this_python
from snakemake.exceptions import WorkflowError

if unknown := set(config) - {"scale", "only"}:
    raise WorkflowError(
        f"--config {', '.join(sorted(unknown))}: allowed are scale=NAME, for config/NAME.yaml, and "
        "only=NAMES; anything else is set in the file"
    )

use_this_python()
SCALE = str(config.get("scale", "paper"))
CONFIG_FILE = f"config/{SCALE}.yaml"
try:
    CONFIG = load_config(Path(CONFIG_FILE))
    CELLS = cells(CONFIG, str(config.get("only", "")))
except UsageError as error:
    raise WorkflowError(str(error))

if CONFIG["scale"] != SCALE:
    raise WorkflowError(f"{CONFIG_FILE} says scale: {CONFIG['scale']}; write scale: {SCALE}")

THREADS = CONFIG["runtime"]["threads"]
GPUS = 1 if CONFIG["runtime"]["device"] == "cuda" else 0
DATA = data_folder(CONFIG)
RESULTS = f"results/{SCALE}"
RUN = f"{RESULTS}/{{model}}/{{task}}/{{method}}/{{recipe}}/seed-{{seed}}"
REPORT = f"reports/{SCALE}"

# A file that changed after it was prepared takes its manifest with it, and so is prepared again.
for line in forget_damaged(DATA):
    print(line, file=sys.stderr)


# What a machine lacks is said at once, in one sentence, and nothing is started.
onstart:
    if workflow.local_exec and (sentence := refusal(CONFIG, examine(CONFIG))):
        raise WorkflowError(sentence)


# The report is written from what there is.
onerror:
    if any(Path(RESULTS).rglob("metrics.json")):
        shell(f"python -m lorasp report --config {CONFIG_FILE} || true")


wildcard_constraints:
    dataset="[^/]+",
    model="[^/]+",
    task="[^/]+",
    method="[^/]+",
    recipe="[^/]+",
    seed="[0-9]+",


def cell_of(wildcards):
    names = {**dict(wildcards), "scale": SCALE, "seed": int(wildcards.seed)}
    return resolve(CONFIG, Cell(**names))


def dataset_manifest(name):
    return DATA / name / "manifest.json"


def model_manifest(name):
    return DATA / "models" / name / "manifest.json"


def metrics_of(runs):
    return [run.folder / "metrics.json" for run in runs]


def table_of(run):
    return resolve_task(CONFIG, run.task)["table"]


def dataset_entry(wildcards):
    return CONFIG["datasets"][wildcards.dataset]


def model_source(wildcards):
    return CONFIG["models"][wildcards.model]["source"]


def model_needs(wildcards):
    # a model can be the outcome of a run, and its tokenizer can be trained on a data set
    source = model_source(wildcards)
    needs = local_files(source)
    if source["kind"] == "run":
        needs.append(Cell(SCALE, **source["cell"]).folder / "train.json")
    if "vocabulary" in source:
        needs.append(dataset_manifest(source["vocabulary"]["dataset"]))
    return needs


def task_dataset(wildcards):
    return dataset_manifest(resolve_task(CONFIG, wildcards.task)["dataset"])


def task_model(wildcards):
    return model_manifest(wildcards.model)


def task_text(wildcards):
    return text_of(resolve_task(CONFIG, wildcards.task))


def train_values(wildcards):
    return decisive("train", cell_of(wildcards))


def evaluate_values(wildcards):
    return decisive("evaluate", cell_of(wildcards))


def task_datasets(wildcards):
    task = resolve_task(CONFIG, wildcards.task)
    return [dataset_manifest(task[role]) for role in ("dataset", "benchmark") if role in task]


def profile_values(wildcards):
    chosen = [cell for cell in CONFIG["profile"]["cells"] if cell["model"] == wildcards.model]
    method = CONFIG["methods"][wildcards.method]
    steps = {key: CONFIG["profile"][key] for key in ("warmup", "repeats")}
    return {
        **steps,
        "cells": chosen,
        "family": method["family"],
        "settings": method.get("settings"),
    }


def local_files(source):
    # what a user edits beside the workflow
    path = Path(source.get("path", ""))
    if source["kind"] != "local":
        return []
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def dataset_needs(wildcards):
    return local_files(dataset_entry(wildcards)["source"])


TRAINED = {(run.model, run.method) for run in CELLS}
PROFILES = [
    f"{RESULTS}/profile/{cell['model']}/{method}.json"
    for cell in CONFIG["profile"]["cells"]
    for method in cell["methods"]
    if (cell["model"], method) in TRAINED
]
