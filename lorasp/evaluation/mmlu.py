"""MMLU, 5-shot, by lm-eval's own tasks: its prompts, its scoring, its standard errors."""

import logging
import math
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import lm_eval.api.task
import lm_eval.utils
import torch
from datasets import Dataset
from lm_eval.api.group import Group
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate as run_tasks
from lm_eval.tasks import TaskManager
from pyarrow import parquet
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from lorasp.errors import WorkError
from lorasp.evaluation.prefix_cache import PrefixCacheLM
from lorasp.models import DTYPES

SHOTS = 5
FILE = "{split}-00000-of-00001.parquet"  # of a subject, as MMLU is published
STOCK = Path(lm_eval.api.task.__file__).parents[1] / "tasks" / "mmlu" / "default"
TEMPLATE = "mmlu_abstract_algebra"  # any stock subject: they differ in name and description alone
logging.getLogger("lm_eval").setLevel(logging.ERROR)
# A bar a subject for the writing of its prompts would bury the one for the model's work.
lm_eval.api.task.tqdm = partial(tqdm, disable=True)
# The template of a prompt would be compiled again for every question and every shot: 80 s in all.
lm_eval.utils.env.from_string = lru_cache(lm_eval.utils.env.from_string)


def evaluate(
    resolved: dict[str, Any],
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    benchmark: Path,
    batch_size: int,
) -> dict[str, Any]:
    """Accuracy over all questions and in each subject, 0 to 100, with lm-eval's standard errors.

    The subjects are the folders of `benchmark`. The score of the whole is the mean over questions,
    as in lm-eval's group `mmlu`. A subject of one question has no standard error.
    """
    precision = resolved["runtime"]["precision"]
    lm = PrefixCacheLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        # HFLM switches autocast off unless it is told, and half precision makes ties of near
        # log-probabilities
        mixed_precision_dtype=None if precision == "fp32" else DTYPES[precision],
        softmax_dtype=torch.float32,
    )
    tasks = subject_tasks(benchmark)
    found = score(lm, tasks)
    subjects = {subject: _accuracy(found[task.task_name]) for subject, task in tasks.items()}
    whole = _accuracy(found["mmlu"])
    if not all(map(_is_finite, tasks.values())):
        # the largest of NaN is an answer like any other: a diverged run must not get a score
        nothing: dict[str, Any] = {"value": None, "stderr": None}
        subjects = {subject: values | nothing for subject, values in subjects.items()}
        whole |= nothing | {"note": "the model's outputs are not finite"}
    split = resolved["task"]["evaluate"][0]
    size = whole.pop("n")
    return {"splits": {split: {"n": size, "metrics": {"accuracy": whole}}}, "subjects": subjects}


def score(lm: LM, tasks: dict[str, ConfigurableTask]) -> dict[str, Any]:
    """What lm-eval finds in each task, by its name, and in all of them together as `mmlu`.

    'simple_evaluate' would do the same and spend a second on listing the machine's packages. The
    answers themselves stay in the tasks' `instances`.
    """
    group = Group.from_config(_stock()["mmlu"] | {"task": None})
    for task in tasks.values():
        group.add(task)
    # one bootstrap iteration, because with none lm-eval leaves out the closed form too
    found: dict[str, Any] = run_tasks(
        lm,
        {"tasks": {task.task_name: task for task in tasks.values()}, "groups": {"mmlu": group}},
        bootstrap_iters=1,
        log_samples=False,
    )["results"]
    return found


def subject_tasks(benchmark: Path) -> dict[str, ConfigurableTask]:
    """lm-eval's task of each subject in `benchmark`, reading its questions from there.

    A subject that MMLU does not have gets the same prompts with 'questions (with answers).' as the
    description. Raises WorkError where there are no subjects, or too few questions in one.
    """
    stock = _stock()
    subjects = sorted(
        folder.parent.name for folder in benchmark.glob(f"*/{FILE.format(split='test')}")
    )
    if not subjects:
        raise WorkError(f"{benchmark} has no subject: a folder with a test-….parquet file in it")
    tasks = {}
    for subject in subjects:
        name = f"mmlu_{subject}"
        neutral = stock[TEMPLATE] | {
            "task": name,
            "task_alias": subject,
            "description": "The following are multiple choice questions (with answers).\n\n",
        }
        config = stock.get(name, neutral) | {
            "custom_dataset": read_subject,
            "dataset_kwargs": {"folder": str(benchmark / subject)},
            "num_fewshot": SHOTS,
        }
        del config["tag"], config["dataset_path"], config["dataset_name"]
        tasks[subject] = ConfigurableTask(config=config)
    return tasks


def read_subject(folder: str, **_: Any) -> dict[str, Dataset]:
    """lm-eval's hook for a data set of one's own: the splits of a subject, straight from parquet.

    57 calls of `load_dataset` cost tens of seconds and a cache that runs would share; this reads
    the files into memory and writes nothing. lm-eval passes the task's metadata too. Raises
    WorkError for fewer questions than a 5-shot test needs.
    """
    splits = {}
    for split, least in (("dev", SHOTS), ("test", 1)):
        file = Path(folder, FILE.format(split=split))
        size = parquet.read_metadata(file).num_rows if file.is_file() else 0
        if size < least:
            raise WorkError(f"{folder}: split {split} has {size} questions and needs {least}")
        # any fingerprint will do, and taking the true one costs more than reading the questions
        splits[split] = Dataset(parquet.read_table(file), fingerprint=split)
    return splits


def _stock() -> dict[str, dict[str, Any]]:
    """lm-eval's own configurations by task name; indexing all its tasks would take 10 s."""
    index = TaskManager(include_defaults=False, include_path=STOCK).task_index
    return {name: dict(entry.cfg) for name, entry in index.items() if entry.cfg}


def _is_finite(task: ConfigurableTask) -> bool:
    """Whether all log-likelihoods of a task that was run are numbers."""
    return all(math.isfinite(likelihood) for one in task.instances for likelihood, _ in one.resps)


def _accuracy(found: dict[str, Any]) -> dict[str, Any]:
    error = found["acc_stderr,none"]
    return {
        "n": found["sample_len"],
        "value": 100 * float(found["acc,none"]),
        "stderr": None if error == "N/A" else 100 * float(error),
    }
