# What the rules share: the configuration of the scale, and where the files of a run lie.
import os
import sys
from pathlib import Path

from lorasp import budgets, gpus, public_models
from lorasp.claims import claims_file
from lorasp.config import Cell, cells, data_folder, decisive, decisive_step, load_config
from lorasp.config import resolve, resolve_task, stage_code, text_of
from lorasp.data.folders import forget_damaged
from lorasp.doctor import examine, refusal
from lorasp.errors import UsageError
from lorasp.locks import holder, take
from lorasp.planning import devices, lookup
from lorasp.planning.workload import untabled
from lorasp.profiling import cells as steps
from lorasp.results import fingerprint
from lorasp.serve import use_this_python
from snakemake.common.tbdstring import TBDString
from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

if unknown := set(config) - {"scale", "only", "gpu"}:
    raise WorkflowError(
        f"--config {', '.join(sorted(unknown))}: allowed are scale=NAME, for config/NAME.yaml, "
        "only=NAMES and gpu=TYPE; anything else is set in the file"
    )

use_this_python()
SCALE = str(config.get("scale", "paper"))
CONFIG_FILE = f"config/{SCALE}.yaml"
SIMULATED_FILE = "config/simulated.yaml"
try:
    CONFIG = load_config(Path(CONFIG_FILE))
    CELLS = cells(CONFIG, str(config.get("only", "")))
    SIMULATED = load_config(Path(SIMULATED_FILE))
    if "gpu" in config:
        devices.listed(config["gpu"])
except UsageError as error:
    raise WorkflowError(str(error))

if CONFIG["scale"] != SCALE:
    raise WorkflowError(f"{CONFIG_FILE} says scale: {CONFIG['scale']}; write scale: {SCALE}")

THREADS = CONFIG["runtime"]["threads"]
GPUS = 1 if CONFIG["runtime"]["device"] == "cuda" else 0
# Snakemake counts GPUs only against a limit: on one machine those that are here, or that --resources
# gpu=N allows; a cluster, for which --jobs counts nodes, knows its own. Which ones a job gets, it
# settles itself when it starts.
on_cluster = workflow.global_resources["_nodes"].value is not None
if not on_cluster and gpus.count() and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", gpus.count())
DATA = data_folder(CONFIG)
RESULTS = f"results/{SCALE}"
RUN = f"{RESULTS}/{{model}}/{{task}}/{{method}}/{{recipe}}/seed-{{seed}}"
REPORT = f"reports/{SCALE}"
# What was measured of the suite itself, here or before; the report shows what there is.
BENCHES = sorted(Path("reports/bench").glob("*.json"))

# A file that changed after it was prepared takes its manifest with it, and so is prepared again.
if workflow.is_main_process:
    for line in forget_damaged(DATA):
        print(line, file=sys.stderr)


# What needs neither the data nor the devices of the scale.
ANYWHERE = {"audit", "plan", "simulate", "simulated"}
PLAN = f"{RESULTS}/plan.json"
PLAN_GPU = f"--gpu {config['gpu']}" if "gpu" in config else ""


# The image of every rule, for --sdm apptainer.
CONTAINER = "containers/lorasp.sif"


# Held while this workflow runs, and free when its process ends, however it ends.
LOCK = Path(".snakemake", "lorasp.lock")


# A second run in one folder is refused: it would remove what the first is making.
# What a machine lacks, and jobs that no GPU of it holds, are said at once, in one sentence, and nothing
# is started. The plan that jobs ask for resources by is therefore made before all else.
onstart:
    needed = [
        {"stage": job.rule.name, **dict(job.wildcards)} for job in workflow.dag.needrun_jobs()
    ]
    sentence = None
    global running
    if workflow.is_main_process and not (running := take(LOCK)):
        sentence = (
            f"{holder(LOCK)} runs a workflow in this folder, and nothing was started: wait for it, "
            "or work in another clone"
        )
    elif workflow.local_exec and {job["stage"] for job in needed} - ANYWHERE:
        sentence = refusal(CONFIG, examine(CONFIG, needed))
    if DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method:
        if not Path(CONTAINER).exists():
            sentence = f"there is no {CONTAINER}, and nothing was started: make container sif"
    if workflow.is_main_process and not sentence:
        limit = (
            workflow.global_resources["gpu"].value if "gpu" in workflow.global_resources else 0
        )
        most = limit if workflow.local_exec else None
        sentence = lookup.prepare(CONFIG_FILE, CONFIG, config.get("gpu"), needed, most)
    if sentence:
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
    return resolve(CONFIG, Cell(**names), fitted=False)


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
    return decisive_step(CONFIG, wildcards.model, wildcards.method)


# Methods that are to have what another one has: their size or steps are fitted first.
def budget_of(wildcards):
    entry = CONFIG["methods"][wildcards.method]
    names = (CONFIG, wildcards.model, wildcards.method)
    return [budgets.path_of(*names)] if "match" in entry else []


def size_of(wildcards):
    # a profile is of one step, and another number of them is no matter of it
    entry = CONFIG["methods"][wildcards.method]
    return [] if "time" in entry.get("match", {}) else budget_of(wildcards)


def budget_profiles(wildcards):
    return budgets.profiles(CONFIG, wildcards.model, wildcards.method)


def budget_tokens(wildcards):
    # in whole steps of so many rows two times are compared, in all runs, whatever `only` says
    if "time" not in CONFIG["methods"][wildcards.method].get("match", {}):
        return []
    names = {"model": wildcards.model, "method": wildcards.method}
    runs = [run for run in cells(CONFIG) if names.items() <= vars(run).items()]
    return sorted({DATA / "tokens" / run.model / run.task / "manifest.json" for run in runs})


def budget_values(wildcards):
    return budgets.inputs(CONFIG, wildcards.model, wildcards.method)


def local_files(source):
    # what a user edits beside the workflow
    path = Path(source.get("path", ""))
    if source["kind"] != "local":
        return []
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def dataset_needs(wildcards):
    return local_files(dataset_entry(wildcards)["source"])


# All that the runs need of the network, and what is made of it.
PREPARED = sorted(
    {str(model_manifest(run.model)) for run in CELLS}
    | {str(DATA / "tokens" / run.model / run.task / "manifest.json") for run in CELLS}
    | {str(path) for run in CELLS for path in task_datasets(run)}
)

TRAINED = {(run.model, run.method) for run in CELLS}
PROFILES = [
    f"{RESULTS}/profile/{cell['model']}/{method}.json"
    for cell in CONFIG["profile"]["cells"]
    for method in cell["methods"]
    if (cell["model"], method) in TRAINED
]

SIMULATIONS = [
    f"results/simulated/{model}/{method}.json" for model, method in steps.planned(SIMULATED)
]
# A part of the runs does not wait for them, nor does a scale of the user's own, whose report has those that
# are there; what other code has simulated of these is made again.
whole = CONFIG.get("simulated", False)
present = [path for path in SIMULATIONS if whole or Path(path).exists()]
AWAITED = [] if config.get("only") else present


def simulate_values(wildcards):
    planned = steps.cells_of(SIMULATED, wildcards.model, wildcards.method)
    return [planned, steps.resolve_cell(SIMULATED, wildcards.model, wildcards.method, planned[0])]


# What the plan says of a job, and of memory and time half as much again with each attempt. It is no
# input of the jobs: another plan trains nothing again.
def planned(stage, resource):
    default = {"gpu": GPUS, "mem_mb": 16_000, "runtime": 24 * 60, "micro_batch": 0}

    def of_job(wildcards, attempt):
        if workflow.dryrun and not Path(PLAN).exists():
            return TBDString()
        asked = lookup.resources(PLAN, default, stage=stage, **dict(wildcards))[resource]
        return asked * (attempt + 1) // 2 if resource in ("mem_mb", "runtime") else asked

    return of_job


def train_threads(wildcards):
    # a run on several GPUs has a process for each, with threads of its own
    asked = lookup.resources(PLAN, {"gpu": GPUS}, stage="train", **dict(wildcards))
    return THREADS * max(1, asked["gpu"])


def plan_needs(wildcards):
    # the sizes of these models are known to nobody before they are here
    only = str(config.get("only", ""))
    return [model_manifest(name) for name in untabled(CONFIG, only)]
