"""The jobs of a plan: what each run, its evaluation and each profile take of the device."""

from collections import defaultdict
from typing import Any, NamedTuple

from lorasp.config import Cell, Config, resolve
from lorasp.errors import UsageError
from lorasp.planning import hours, memory
from lorasp.planning.devices import GIB, Device
from lorasp.planning.memory import Answer, Fit, Question, Step
from lorasp.planning.workload import Shape, mean_length, prompt_length, rows_of_task

# The untouched base model is held and computed as the one that LoRA adapts.
REFERENCE = "lora"
Job = dict[str, Any]
Profiled = tuple[str, str, int, int]  # model, method, batch, length


class Ground(NamedTuple):
    """What all jobs of a plan stand on."""

    config: Config
    device: Device
    utilisation: float
    shapes: dict[str, Shape]
    answers: dict[tuple[str, str, int], Answer]


def profiled(config: Config, runs: list[Cell]) -> list[Profiled]:
    """Every profile of the runs' models and methods."""
    pairs = {(run.model, run.method) for run in runs}
    return [
        (cell["model"], method, cell["batch"], cell["length"])
        for cell in config["profile"]["cells"]
        for method in cell["methods"]
        if (cell["model"], method) in pairs
    ]


def questions(config: Config, runs: list[Cell], profiles: list[Profiled]) -> list[Question]:
    """What must be simulated: the models, methods and lengths of the jobs, with their batches."""
    asked: dict[tuple[str, str, int], set[tuple[int, int | None]]] = defaultdict(set)
    for run in runs:
        resolved = resolve(config, run, fitted=False)  # a plan comes before any budget is fitted
        length, recipe = resolved["task"]["max_length"], resolved["recipe"]
        if recipe:
            asked[run.model, run.method, length].add((recipe["batch_size"], given(config, recipe)))
        else:
            asked[run.model, REFERENCE, length].add((1, 1))
    for model, method, batch, length in profiles:
        asked[model, method, length].add((batch, batch))
    # the dearest first, so that no core waits for another in the end
    keys = sorted(asked, key=lambda key: (-len(asked[key]), key))
    return [Question(*key, tuple(sorted(asked[key], key=str))) for key in keys]


def given(config: Config, recipe: dict[str, Any]) -> int | None:
    """The micro-batch that the plan need not choose: the recipe's, on a CPU the whole batch."""
    micro, batch = recipe.get("micro_batch_size"), recipe["batch_size"]
    if micro is not None and batch % micro:
        raise UsageError(f"recipe micro_batch_size {micro} does not divide batch_size {batch}")
    return batch if micro is None and config["runtime"]["device"] == "cpu" else micro


def jobs_of(ground: Ground, runs: list[Cell]) -> list[Job]:
    """Training and evaluation of runs that differ in their seeds alone."""
    resolved = resolve(ground.config, runs[0], fitted=False)
    length = resolved["task"]["max_length"]
    names = {key: getattr(runs[0], key) for key in ("model", "task", "method", "recipe")}
    common = names | {"seeds": len(runs)}
    recipe, layers = resolved["recipe"], ground.shapes[names["model"]].layers
    runtime = resolved["runtime"]
    pace = hours.pace(ground.device, runtime["precision"], ground.utilisation, layers)
    share = hours.shortened(
        mean_length(ground.config, names["model"], names["task"]).tokens, length
    )
    rows = rows_of_task(ground.config, resolved["task"])
    if not recipe:
        step = reference(ground, names["model"], length)
        loaded = hours.Cost(0, hours.startup(step.weights, pace))
        train = _job(ground, "train", loaded, step, step.weights, "the base model takes no step")
    else:
        answer = ground.answers[names["model"], names["method"], length]
        chosen = answer.fits[recipe["batch_size"], given(ground.config, recipe)]
        step = chosen.step
        cost = hours.training(rows, recipe, chosen, share, pace, runtime["eval_batch_size"])
        because = _because(chosen, answer, recipe, ground.device)
        train = _job(ground, "train", cost, step, chosen.tensors, because, chosen)
        train["accumulation"] = recipe["batch_size"] // (chosen.micro * max(1, chosen.gpus))
    cost, tensors = _evaluation(ground, resolved, step, rows.score, share, pace, layers)
    held = "the weights, a batch of runtime.eval_batch_size in two layers, and its logits"
    score = _job(ground, "evaluate", cost, step, tensors, held)
    return [common | train, common | score]


def profile_job(ground: Ground, profile: Profiled) -> Job:
    """A measured profile: its steps at a stated batch, on one device.

    It warms up, times its repeats, reads the meter over as many steps again or `hours.METERED`
    seconds of them, and counts memory and states in one step each.
    """
    model, method, batch, length = profile
    answer = ground.answers[model, method, length]
    step = answer.fits[batch, batch].step
    layers = ground.shapes[model].layers
    runtime = {**ground.config["runtime"], **ground.config["models"][model].get("runtime", {})}
    pace = hours.pace(ground.device, runtime["precision"], ground.utilisation, layers)
    warmup, repeats = (ground.config["profile"][key] for key in ("warmup", "repeats"))
    steps, each = max(1, warmup) + 2 * repeats + 2, max(step.flops / pace.rate, pace.launch)
    busy = (steps - repeats) * each + max(repeats * each, hours.METERED)
    cost = hours.Cost(steps * step.flops, busy + hours.startup(step.weights, pace))
    because = "a profile measures its whole batch on one device"
    fitting = memory.on_device(step.peak, ground.device) <= ground.device["memory_bytes"]
    chosen = Fit(1, batch, int(step.peak), fitting, step)
    job = _job(ground, "profile", cost, step, step.peak, because, chosen)
    return {"model": model, "task": None, "method": method, "recipe": None, "seeds": 1} | job


def reference(ground: Ground, model: str, length: int | None = None) -> Step:
    """A step of the model, with LoRA if there is one: for what all methods have in common.

    With a `length` it is a step at that length, which work in proportion to tokens starts from.
    """
    keys = [key for key in ground.answers if key[0] == model and length in (None, key[2])]
    key = min(keys, key=lambda key: (key[1] != REFERENCE, key))
    return next(iter(ground.answers[key].fits.values())).step


def _job(
    ground: Ground,
    stage: str,
    cost: hours.Cost,
    step: Step,
    tensors: float,
    because: str,
    chosen: Fit | None = None,
) -> Job:
    on_cpu = ground.device["name"] == "cpu"
    gpus = chosen.gpus if chosen else 1
    size = memory.on_device(tensors, ground.device)
    # the weights come through the host's memory, to each GPU its part of them; when they are saved
    # the first process has them whole
    host = size if on_cpu else int(gpus * memory.PROCESS * 3 + 1.2 * step.weights)
    return {
        "stage": stage,
        "gpus": 0 if on_cpu else gpus,
        "micro_batch": chosen.micro if chosen else None,
        "accumulation": 1 if chosen else None,
        "tensor_bytes": int(tensors),
        "memory_bytes": size,
        "host_memory_bytes": host,
        "flops": int(cost.flops),
        "seconds": round(cost.seconds, 1),
        "runtime_minutes": hours.minutes(cost.seconds),
        "fits": size <= ground.device["memory_bytes"],
        "because": because,
        "trainable": int(step.trainable) if chosen else 0,
    }


def _because(chosen: Fit, answer: Answer, recipe: dict[str, Any], device: Device) -> str:
    remedy = f"; one holds it with {answer.remedy}" if answer.remedy else ""
    if not chosen.fits:
        size = memory.on_device(chosen.tensors, device)
        where = "8 GPUs" if answer.most > 1 else "one GPU, and its weights cannot be shared out"
        return f"one sequence takes {size / GIB:.0f} GiB, too much for {where}{remedy}"
    if chosen.gpus > 1:
        return f"too large for one GPU, its states are shared by {chosen.gpus}{remedy}"
    if "micro_batch_size" in recipe:
        return "the recipe's micro_batch_size"
    if chosen.micro < recipe["batch_size"]:
        return f"the largest part of the batch that {device['name']} holds"
    return "the whole batch at once"


def _evaluation(
    ground: Ground,
    resolved: Config,
    step: Step,
    rows: int,
    share: float,
    pace: hours.Pace,
    layers: int,
) -> tuple[hours.Cost, float]:
    """Cost of an evaluation and bytes of its tensors: weights, two layers and the logits."""
    task, batch = resolved["task"], resolved["runtime"]["eval_batch_size"]
    longest = task["max_length"]
    kept = step.kept / step.batch * 2 / layers
    logits = 0.0
    if task["family"] == "translation":
        beams = task["generation"]["num_beams"]
        length = mean_length(ground.config, resolved["model"]["name"], task["name"]).tokens
        most = task["generation"]["max_new_tokens"]
        cost = hours.beam_search(rows, min(length, most), step, share, pace, batch, beams)
        kept *= beams * max(1.0, most / longest)
    elif task["family"] == "instruction":
        tokens = prompt_length(ground.config, task)
        cost = hours.scoring(rows, step, tokens / longest, pace, batch)
        kept *= tokens / longest
        logits = 3 * 4 * tokens * ground.shapes[resolved["model"]["name"]].vocabulary
    else:
        cost = hours.scoring(rows, step, share, pace, batch)
    cost = cost._replace(seconds=cost.seconds + hours.startup(step.weights, pace))
    return cost, step.weights + batch * (kept + logits)
