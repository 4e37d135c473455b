"""Fair budgets: give a method as many trained parameters, as much memory or time as another has.

lorasp budget --config config/smoke.yaml --model roberta-tiny --method lora-sp-memory
"""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from lorasp.budget_steps import ratio_of
from lorasp.budget_words import UNITS, note, number_text
from lorasp.config import OF_A_STEP, Config, cells, data_folder, resolve_method, resolve_model
from lorasp.errors import UsageError, WorkError
from lorasp.public_models import public_models
from lorasp.results import fingerprint, read_json, write_json
from lorasp.sweeps import resized

SHARES = 10**6  # of a share in (0, 1] so many values are looked at
LARGEST = 2**20
Budget = dict[str, Any]


def check(config: Config) -> None:
    """Refuse a `match` that nothing could be fitted to, with a UsageError.

    A method that is run needs, on each of its models, the profiles that it is fitted by.
    """
    for name, entry in config["methods"].items():
        if "match" not in entry:
            continue
        kind, reference = matched(config, name)
        where, other = f"methods.{name}.match.{kind}", config["methods"][reference]
        if "base" in (entry["family"], other["family"]):
            raise UsageError(f"{where}: a method of family base trains nothing, so nothing matches")
        if "match" in other:
            raise UsageError(f"{where} is {reference}, which is itself fitted: name another method")
        size = entry.get("size")
        if kind != "time" and not _is_number(entry.get("settings", {}).get(size)):
            raise UsageError(
                f"{where} is reached by the setting that methods.{name}.size names: give it, and "
                f"a number under settings; found size {size or 'nothing'}"
            )
        for model in sorted({cell.model for cell in cells(config) if cell.method == name}):
            profiles(config, model, name)
            if kind == "memory":
                _shape(config, model, name)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def matched(config: Config, method: str) -> tuple[str, str]:
    """What a method with `match` is to have as much of, and as which method."""
    ((kind, reference),) = config["methods"][method]["match"].items()
    return kind, reference


def path_of(config: Config, model: str, method: str, root: Path | None = None) -> Path:
    """Where the budget of a model and method lies; `root` takes the place of results/<scale>."""
    return (root or Path("results", config["scale"])) / "budget" / model / f"{method}.json"


def profiles(config: Config, model: str, method: str, root: Path | None = None) -> list[Path]:
    """The profiles whose times are matched: of the reference, and of the method's own step.

    A method that is given other steps takes each as before, so its step is that of any method with
    the same family and settings. Raises UsageError where the configuration plans no such profile.
    """
    kind, reference = matched(config, method)
    if kind != "time":
        return []
    planned = [cell for cell in config["profile"]["cells"] if cell["model"] == model]
    names = [name for cell in planned for name in cell["methods"]]
    same = [name for name in names if _step(config, name) == _step(config, method)]
    if reference not in names or not same:
        missing = reference if reference not in names else f"{method}, or the method it is like"
        raise UsageError(
            f"methods.{method}.match.time needs a profile of {missing} on {model}: add it to "
            "profile.cells"
        )
    folder = (root or Path("results", config["scale"])) / "profile" / model
    return [folder / f"{name}.json" for name in (reference, same[0])]


def _step(config: Config, name: str) -> Budget | None:
    """What decides a step of a method; None where its size is fitted."""
    method = resolve_method(config, name)
    if method.get("match", {"time": ""}).keys() != {"time"}:
        return None
    return {key: method[key] for key in OF_A_STEP if key in method}


def inputs(config: Config, model: str, method: str) -> Budget:
    """What a fit depends on in the configuration; measured times come to it."""
    kind, reference = matched(config, method)
    names = (*OF_A_STEP, "size")
    entry = resolve_model(config, model)
    found: Budget = {
        "budget": kind,
        "model": {key: entry[key] for key in ("architecture", "source", "targets")},
        "methods": [
            {key: one[key] for key in names if key in one}
            for one in (resolve_method(config, name) for name in (method, reference))
        ],
    }
    if kind == "memory":
        runtime = {**config["runtime"], **entry.get("runtime", {})}
        keys = ("device", "precision", "weights")
        found["runtime"] = {key: runtime.get(key) for key in keys}
        found["shape"] = _shape(config, model, method)
    return found


def _shape(config: Config, model: str, method: str) -> dict[str, int]:
    """Batch and length of the model's profile."""
    for cell in config["profile"]["cells"]:
        if cell["model"] == model:
            return {key: cell[key] for key in ("batch", "length")}
    raise UsageError(
        f"methods.{method}.match.memory needs a batch and a length for {model}: add the model to "
        "profile.cells"
    )


def _seconds(config: Config, model: str, method: str, root: Path | None = None) -> list[float]:
    """The measured times of a step: of the reference, and of the method."""
    files = profiles(config, model, method, root)
    return [read_json(file, "profile")["seconds"]["step"]["median"] for file in files]


def _made_from(config: Config, model: str, method: str, root: Path | None = None) -> str:
    times = _seconds(config, model, method, root)
    return fingerprint({**inputs(config, model, method), "seconds": times})


def read(config: Config, model: str, method: str, root: Path | None = None) -> Budget:
    """The budget of a model and method, as fitted.

    Raises WorkError, with the command that mends it, where there is none or where what it was
    fitted from is no longer what it was.
    """
    path = path_of(config, model, method, root)
    mend = _command("budget", config, model, method)
    if not path.is_file():
        raise WorkError(f"{method} is not fitted to its budget on {model} yet: run `{mend}` first")
    budget = read_json(path, "budget")
    if budget["made_from"] != _made_from(config, model, method, root):
        raise WorkError(
            f"{path} was fitted from another configuration or other profiles than there are now: "
            f"run `{mend}` again"
        )
    return budget


def _command(stage: str, config: Config, model: str, method: str | None = None) -> str:
    named = f" --method {method}" if method else ""
    return f"lorasp {stage} --config config/{config['scale']}.yaml --model {model}{named}"


def holds(config: Config, model: str, method: str, root: Path | None = None) -> bool:
    """Whether a run of the method can be resolved: it has no `match`, or a budget that holds."""
    if "match" not in config["methods"][method]:
        return True
    try:
        read(config, model, method, root)
    except WorkError:
        return False
    return True


def write_budget(config: Config, model: str, method: str, out: Path | None = None) -> Path:
    """Fit a method and write its budget; the path.

    The file says nothing of time and machine: the same answer trains nothing again. Raises
    UsageError for a method without `match`, WorkError where a profile or the model is missing.
    """
    path = out or path_of(config, model, method)
    write_json(path, fit(config, model, method), "budget")
    return path


def fit(config: Config, model: str, method: str) -> Budget:
    """The settings, or the steps, with which a method comes nearest to its budget on a model."""
    resolve_model(config, model)
    if "match" not in resolve_method(config, method):
        raise UsageError(
            f"methods.{method} has no match, so it has no budget to be fitted to; write, for "
            "instance, match: {trainable: lora}"
        )
    kind, reference = matched(config, method)
    by = _by_time if kind == "time" else _by_size
    found = by(config, model, method)
    off = None if found["achieved"] is None else found["achieved"] / found["asked"] - 1
    return {
        "scale": config["scale"],
        "model": model,
        "method": method,
        "budget": kind,
        "reference": reference,
        "unit": UNITS[kind],
        **found,
        "off": off,
        "note": note(found, off, reference),
        "made_from": _made_from(config, model, method),
    }


def _by_time(config: Config, model: str, method: str) -> Budget:
    missing = [file for file in profiles(config, model, method) if not file.is_file()]
    if missing:
        commands = [_command("profile", config, model, file.stem) for file in missing]
        if not _is_prepared(config, model):
            commands.insert(0, _command("prepare", config, model))
        raise WorkError(
            f"there is no {' and no '.join(map(str, missing))}: run `{' && '.join(commands)}` first"
        )
    asked, own = _seconds(config, model, method)
    steps = float(f"{asked / own:.6g}")
    _, reference = matched(config, method)
    runs = [cell for cell in cells(config) if (cell.model, cell.method) == (model, method)]
    # whole steps of a run are not quite what is asked: the run that is furthest from it is told
    times = [own * ratio for run in runs for ratio in ratio_of(config, run, reference, steps)]
    achieved = max(times, key=lambda time: abs(time - asked), default=None)
    return {"settings": {}, "steps": steps, "asked": asked, "achieved": achieved}


def _by_size(config: Config, model: str, method: str) -> Budget:
    _, reference = matched(config, method)
    entry = resolve_method(config, method)
    size, settings = entry["size"], entry["settings"]
    whole = isinstance(settings[size], int)
    start = settings[size] if whole else max(1, round(settings[size] * SHARES))
    measure = _measure(config, model, method)
    asked = measure(resolve_method(config, reference))

    def changed(number: int) -> Budget:
        return resized(settings, {size: number if whole else number / SHARES})

    @cache
    def achieved(number: int) -> float:
        try:
            return measure({**entry, "settings": changed(number)})
        except UsageError:  # larger than a matrix of the model, or too small to select anything
            if number == start:
                raise
            return math.copysign(math.inf, number - start)

    top = LARGEST if whole else SHARES
    if falls := _fall(achieved, start, top):
        small, large = (number_text(changed(number)[size]) for number in falls)
        raise UsageError(
            f"methods.{method}.size is {size}, and from {small} to {large} of it "
            f"what is matched falls from {achieved(falls[0]):,} to {achieved(falls[1]):,}: name a "
            "setting with which it rises"
        )
    number = nearest(achieved, asked, start, top)
    fitted = changed(number)
    chosen = {key: value for key, value in fitted.items() if value != settings[key] or key == size}
    return {"settings": chosen, "steps": 1.0, "asked": asked, "achieved": achieved(number)}


def _fall(achieved: Callable[[int], float], start: int, top: int) -> tuple[int, int] | None:
    """A number and its double with which less is achieved: no search would find the nearest."""
    low, high = start, 2 * start
    if high > top or math.isinf(achieved(high)):
        low, high = start // 2, start
    return (low, high) if low and achieved(high) < achieved(low) else None


def nearest(achieved: Callable[[int], float], asked: float, start: int, top: int) -> int:
    """The whole number from 1 to `top` that achieves most nearly what is asked, the smaller of two.

    What is achieved must rise with the number; infinities stand for numbers that are refused. From
    `start` on it is enclosed, then searched by a straight line and by halving in turn.
    """
    low = high = start
    while achieved(high) < asked and high < top:
        low, high = high, min(2 * high, top)
    while achieved(low) > asked and low > 1:
        low, high = low // 2, low
    halve = False
    while high - low > 1 and asked not in (achieved(low), achieved(high)):
        below, above = achieved(low), achieved(high)
        middle = (low + high) // 2
        if not halve and math.isfinite(above - below):
            middle = low + round((asked - below) / (above - below) * (high - low))
        middle = min(max(middle, low + 1), high - 1)
        low, high = (middle, high) if achieved(middle) < asked else (low, middle)
        halve = not halve
    return min((low, high), key=lambda number: (abs(achieved(number) - asked), number))


def _measure(config: Config, model: str, method: str) -> Callable[[Budget], float]:
    """What measures a method by what is to be matched: parameters, or bytes."""
    from lorasp.profiling.simulations import simulation  # seconds of imports

    kind, _ = matched(config, method)
    entry = resolve_model(config, model)
    folder = data_folder(config, "models", model) if _is_prepared(config, model) else None
    if folder is None and model not in public_models():
        raise WorkError(
            f"model {model} is not prepared, and no public model has that name: run "
            f"`{_command('prepare', config, model)}` first"
        )
    resolved = {"model": entry, "runtime": {**config["runtime"], **entry.get("runtime", {})}}
    if kind == "trainable":
        return lambda one: trained_parameters({**resolved, "method": one}, folder)
    resolved["profile"] = _shape(config, model, method)
    return lambda one: simulation({**resolved, "method": one}, folder)["peak_bytes"]


def _is_prepared(config: Config, model: str) -> bool:
    return (data_folder(config, "models", model) / "config.json").is_file()


def trained_parameters(resolved: dict[str, Any], folder: Path | None) -> int:
    """Parameters that a method trains besides the classification head, counted on the meta device.

    The head is new for every task, and belongs to no method.
    """
    import torch

    from lorasp.adapters.registry import apply_method
    from lorasp.adapters.residual import HEADS
    from lorasp.profiling.simulate import skeleton

    # how the base is held changes no count
    settings = {k: v for k, v in resolved["method"]["settings"].items() if k != "quantize"}
    resolved = {**resolved, "method": {**resolved["method"], "settings": settings}}
    network = skeleton(resolved, folder)
    with torch.device("meta"):
        network = apply_method(network, resolved)
    heads = HEADS if resolved["model"]["architecture"] == "encoder" else ()
    return sum(
        weight.numel()
        for name, weight in network.named_parameters()
        if weight.requires_grad and not {"modules_to_save", *heads} & set(name.split("."))
    )
